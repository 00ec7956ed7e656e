"""LLP: 11,849 ten-second videos of 25 events, each labelled by what happens, not when; with times for testing.

Needs: 10 GB prepared frames and sound.

Tian et al., Unified Multisensory Perception: Weakly-Supervised Audio-Visual Video Parsing, ECCV 2020. Below `root`:
``frames``, ``wave`` and ``labels/`` with ``AVVP_train.csv``, ``AVVP_val_pd.csv``, ``AVVP_test_pd.csv``,
``AVVP_eval_audio.csv`` and ``AVVP_eval_visual.csv``, separated by tabs. ``labels/categories.txt`` may name other
classes, one a line, in data of your own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perdure.types import Dataset

SEGMENTS = 10
TODO = "Take LLP's csv files into <root>/labels."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the reader of LLP."""

    root: Path = Path("data/LLP")
    """Folder with `frames`, `wave` and `labels`."""
    domain: str = ""
    """Only videos that hold an event of one domain (`domestic environments` ...); empty: all."""
    official_duplicates: bool = False
    """List a video once for each of its labels, as the published code of PHP does (16,057 and 2,179 items)."""
    long_ids: bool = False
    """Frames and sound are called by the whole `filename` of the csv, not by its first 11 characters."""
    on_missing: Literal["stop", "skip"] = "stop"
    """What to do with annotated videos that lack frames or sound: stop with a list, or leave them out."""


def files(config: Config):
    """Annotation files of a complete copy."""
    names = ("AVVP_train.csv", "AVVP_val_pd.csv", "AVVP_test_pd.csv", "AVVP_eval_audio.csv", "AVVP_eval_visual.csv")
    return [config.root / "labels" / name for name in names]


def read(config: Config) -> Dataset:
    """Labels of each video; of test and validation videos also runs of seconds in sound and sight."""
    from perdure.data import clips, lists

    root, labels = config.root.expanduser(), config.root.expanduser() / "labels"
    names = clips.class_names(labels, lists.load("audio_visual.json")["llp"])
    times = {m: _times(labels / f"AVVP_eval_{m}.csv", names) for m in ("audio", "visual")}
    wanted = _domain(config.domain, names)
    parts, left_out = {}, {}
    split_files = {"train": "AVVP_train", "validation": "AVVP_val_pd", "test": "AVVP_test_pd"}
    for split, file in split_files.items():
        items = _items(labels / f"{file}.csv", names, times, config, weak=split == "train")
        items = [item for item in items if wanted & set(item.target["labels"])]
        parts[split], left_out[split] = clips.examples(
            clips.unique_ids(items), root, segments=SEGMENTS, on_missing=config.on_missing, what="LLP"
        )
    return Dataset(
        name="LLP",
        kind="parse-video",
        candidates=tuple(names),
        facts={
            "segments": SEGMENTS,
            "left_out": left_out,
            "times_without_video": {m: _unlisted(table, labels, split_files) for m, table in times.items()},
            "source": "LLP",
        },
        **parts,
    )


def _items(path: Path, names: list[str], times: Any, config: Config, *, weak: bool) -> list[Any]:
    from perdure.data import clips
    from perdure.errors import DataError

    items, video_of = [], {}
    for number, row in enumerate(clips.read_table(path, ("filename", "event_labels"), todo=TODO), 2):
        where, name = f"{path}, line {number}", row["filename"]
        labels = [clips.label_of(label, names, where=where) for label in row["event_labels"].split(",")]
        target: dict[str, Any] = {"labels": sorted(set(labels))}
        if not weak:
            target |= {modality: table.get(name, []) for modality, table in times.items()}
        times_listed = len(labels) if config.official_duplicates else 1
        clip = name if config.long_ids else name[:11]
        if (other := video_of.setdefault(clip, name)) != name:
            raise DataError(f"{other} and {name} have the same clip {clip}", where=where, todo="Set `long_ids: true`.")
        items += [clips.Item(name, clip, target)] * times_listed
    return items


def _times(path: Path, names: list[str]) -> dict[str, list[list[int]]]:
    """``[class, from, to)`` of each video, in seconds."""
    from perdure.data import clips
    from perdure.errors import DataError

    table: dict[str, list[list[int]]] = {}
    columns = ("filename", "onset", "offset", "event_labels")
    for number, row in enumerate(clips.read_table(path, columns, todo=TODO), 2):
        where = f"{path}, line {number}"
        label = clips.label_of(row["event_labels"], names, where=where)
        try:
            begin, end = (int(float(row[name])) for name in ("onset", "offset"))
        except ValueError:
            raise DataError(f"from {row['onset']!r} to {row['offset']!r}", where=where, expected="seconds") from None
        table.setdefault(row["filename"], []).append([label, max(begin, 0), min(end, SEGMENTS)])
    return table


def _unlisted(table: dict[str, list[Any]], labels: Path, split_files: dict[str, str]) -> int:
    """Times of videos that neither validation nor test lists (a few names are damaged in the published files)."""
    from perdure.data import clips

    listed = {
        row["filename"]
        for split in ("validation", "test")
        for row in clips.read_table(labels / f"{split_files[split]}.csv", ("filename",), todo=TODO)
    }
    return sum(len(times) for name, times in table.items() if name not in listed)


def _domain(domain: str, names: list[str]) -> set[int]:
    from perdure.data import lists
    from perdure.errors import RecipeError

    domains = lists.load("audio_visual.json")["domains"]["LLP"]
    if not domain:
        return set(range(len(names)))
    if domain not in domains:
        raise RecipeError(f"there is no domain {domain!r}", where="data llp", expected=f"one of {', '.join(domains)}")
    return {names.index(name) for name in domains[domain] if name in names}
