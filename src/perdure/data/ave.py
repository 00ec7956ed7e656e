"""AVE: 4,143 ten-second videos in which one of 28 events is both seen and heard.

Needs: 4 GB prepared frames and sound.

Tian et al., Audio-Visual Event Localization in Unconstrained Videos, ECCV 2018. Below `root`: ``frames``, ``wave`` and
``labels/`` with ``Annotations.txt`` (or ``Annotations_with_domain.txt``), ``{train,val,test}_order.h5`` and, if it is
there, ``labels.h5``. Class 28 is background. Without ``labels.h5`` the seconds from start to end are the event's.
``labels/categories.txt`` may name other classes, one a line, in data of your own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perdure.files.text_files import lines, read_text
from perdure.types import Dataset

SEGMENTS = 10
BACKGROUND = "background"
COLUMNS = ("category", "videoid", "quality", "starttime", "endtime")
"""Of the annotations, by their head in lower case."""
TODO = "Take AVE's annotation files (Annotations.txt, *_order.h5) into <root>/labels."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the reader of AVE."""

    root: Path = Path("data/AVE")
    """Folder with `frames`, `wave` and `labels`."""
    domain: str = ""
    """Only the events of one domain (`music performances`, `animal activities` ...); empty: all."""
    on_missing: Literal["stop", "skip"] = "stop"
    """What to do with annotated videos that lack frames or sound: stop with a list, or leave them out."""


def files(config: Config):
    """Annotation files of a complete copy."""
    labels = config.root / "labels"
    return [annotation_file(labels), *(labels / f"{split}_order.h5" for split in ("train", "val", "test"))]


def read(config: Config) -> Dataset:
    """A class index for each of ten seconds."""
    from perdure.data import clips, lists
    from perdure.errors import DataError

    root, labels = config.root.expanduser(), config.root.expanduser() / "labels"
    names = clips.class_names(labels, lists.load("audio_visual.json")["ave"])
    rows = _annotations(annotation_file(labels), names)
    segments = _segment_labels(labels, rows, background=len(names))
    keep = _domain(config.domain, names)
    parts, left_out = {}, {}
    for split, file in (("train", "train"), ("validation", "val"), ("test", "test")):
        order = _array(labels / f"{file}_order.h5", "order").tolist()
        if order and max(order) >= len(rows):
            raise DataError(f"it names row {max(order)}", where=f"{file}_order.h5", expected=f"rows below {len(rows)}")
        items = [
            clips.Item(rows[i]["id"], rows[i]["id"], segments[i]) for i in order if names[rows[i]["label"]] in keep
        ]
        parts[split], left_out[split] = clips.examples(
            clips.unique_ids(items), root, segments=SEGMENTS, on_missing=config.on_missing, what="AVE"
        )
    return Dataset(
        name="AVE",
        kind="localize-events",
        candidates=(*names, BACKGROUND),
        facts={"segments": SEGMENTS, "left_out": left_out, "source": "AVE"},
        **parts,
    )


def annotation_file(labels: Path) -> Path:
    """The annotations under the name that they have here."""
    with_domain = labels / "Annotations_with_domain.txt"
    return with_domain if with_domain.is_file() else labels / "Annotations.txt"


def _annotations(path: Path, names: list[str]) -> list[dict[str, Any]]:
    """Rows ``category&id&quality&start&end[&domain]``, or in the order that a head with these words gives."""
    from perdure.data import clips
    from perdure.errors import DataError

    rows, place = [], {name: i for i, name in enumerate(COLUMNS)}
    for number, line in enumerate(lines(read_text(path, todo=TODO)), 1):
        cells = line.strip().split("&")
        if not line.strip():
            continue
        if not rows and set(COLUMNS) <= (head := {cell.lower(): i for i, cell in enumerate(cells)}).keys():
            place = head
            continue
        where = f"{path}, line {number}"
        try:
            category, name, _, start, end = (cells[place[column]] for column in COLUMNS)
            span = {"start": int(start), "end": int(end)}
        except (IndexError, ValueError):
            raise DataError(f"{line.strip()!r}", where=where, expected="category&id&quality&start&end") from None
        rows.append({"id": name, "label": clips.label_of(category, names, where=where), **span})
    return rows


def _segment_labels(labels: Path, rows: list[dict[str, Any]], *, background: int) -> list[list[int]]:
    """From ``labels.h5`` if it is there, else from start and end."""
    from perdure.errors import DataError

    file = labels / "labels.h5"
    if file.is_file():
        stored = _array(file, "avadataset")
        if len(stored) != len(rows):
            raise DataError(f"{len(stored)} rows", where=str(file), expected=f"{len(rows)}, as the annotations have")
        return stored.argmax(2).tolist()
    return [
        [row["label"] if row["start"] <= second < row["end"] else background for second in range(SEGMENTS)]
        for row in rows
    ]


def _array(path: Path, key: str) -> Any:
    from perdure.errors import DataError, MissingExtra

    try:
        import h5py
    except ImportError:
        raise MissingExtra(
            "AVE's files are HDF5, which needs h5py", todo='Type: pip install "perdure[video]"'
        ) from None
    if not path.is_file():
        raise DataError("no such file", where=str(path), todo=TODO)
    try:
        with h5py.File(path) as file:
            return file[key][()]  # type: ignore[index]
    except (OSError, KeyError) as error:
        raise DataError(f"holds no {key!r} ({error})", where=str(path)) from None


def _domain(domain: str, names: list[str]) -> set[str]:
    from perdure.data import lists
    from perdure.errors import RecipeError

    domains = lists.load("audio_visual.json")["domains"]["AVE"]
    if not domain:
        return set(names)
    if domain not in domains:
        raise RecipeError(f"there is no domain {domain!r}", where="data ave", expected=f"one of {', '.join(domains)}")
    return set(domains[domain])
