"""Looks through images before a run: counts, unreadable files, the same image in two splits, class names, and what
a run does to images that their owner may not expect.

Knows data sets of `perdure.data`, folders of images, and rows of tables, Hugging Face data sets and tar shards. Does
not know a reader's layout (readers check their own) and changes nothing.

By default it reads headers, and the ends of JPEG and PNG files, which tell truncation; a suspicious one is decoded.
Files are compared by size and ends first, and by their whole content only where those agree.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perdure import images
from perdure.data import class_folders, image_folder
from perdure.data.fitting import fitting
from perdure.data.rows import SPLITS, Row, numbers_for_names
from perdure.errors import DataError, UnreadableExample
from perdure.prepare.check_report import CheckReport
from perdure.settings import registry
from perdure.settings.config import parse
from perdure.settings.suggestions import nearest
from perdure.types import Dataset


def check(dataset: Dataset, *, decode: bool = False) -> CheckReport:
    """Look through the images of a data set that a reader gave.

    Args:
        decode: decode every pixel, not the headers alone.

    Raises:
        DataError: the data set has no images.
    """
    items, counts = [], {}
    names = _distinct(dataset.candidates)
    for split in ("train", "validation", "test"):
        examples = getattr(dataset, split)
        if not len(examples):
            continue
        counts[split] = dict.fromkeys(names, 0)
        for example in examples:
            label = _label(example.target, names)
            counts[split][label] = counts[split].get(label, 0) + 1
            if "image" in example.inputs:
                items.append(_Item(split, label, example.id, example.inputs["image"]))
    if not items:
        raise DataError(f"{dataset.name} has no images to look through", expected="examples with an `image`")
    empty = [f"{split}: no image of {name}" for split, found in counts.items() for name, n in found.items() if not n]
    return _report(dataset.name, items, counts, decode=decode, class_names=empty)


def check_path(path: str | Path, *, decode: bool = False) -> CheckReport:
    """Look through what is at a path: a folder of images, a table, shards, a Hugging Face data set (`data.fitting`).

    A folder holds class folders, or folders named train, val, test that hold them. Paths in a table are relative
    to the table.

    Raises:
        DataError: there is no such path, it holds no image, or the table cannot be read.
    """
    named = fitting(path)
    if named.name == "image_folder":
        return _check_folder(Path(path).expanduser(), decode)
    reader = registry.load("data", named.name)
    if not hasattr(reader, "rows"):
        return check(named.build(), decode=decode)
    config = parse(reader.Config, named.settings, where=str(path))
    return _check_rows(str(path), list(reader.rows(config)), config, decode)


def _check_rows(source: str, found: Sequence[Row], config: Any, decode: bool) -> CheckReport:
    labelled = config.kind == "classify" or any(row.label for row in found)
    items, faulty = [], []
    for row in found:
        split = SPLITS.get(row.split.lower(), row.split) or "all"
        lacking = "path" if row.image is None else "label" if labelled and not row.label else ""
        if row.image is None and row.question:
            continue  # a question without a picture
        if lacking:
            faulty.append(f"{row.where.rpartition(', ')[2]}: no {lacking}")
            continue
        items.append(_Item(split, row.label or "(no class)", row.id, row.image))
    if not items:
        raise DataError("lists no image", where=source, expected="the columns path and label, and a row an image")
    return _report(source, items, _counted(items), decode=decode, rows=faulty)


@dataclass(frozen=True, slots=True)
class _Item:
    split: str
    label: str
    name: str
    value: Any
    """A path, bytes or a uint8 array."""


def _check_folder(root: Path, decode: bool) -> CheckReport:
    parts = image_folder.split_folders(root) or {"all": ""}
    items, ignored, empty, remarks = [], [], [], []
    for split, folder in parts.items():
        classes = class_folders.subfolders(root / folder)
        with_image = set()
        deeper: dict[str, set[str]] = defaultdict(set)
        for name, _ in class_folders.walk(root, folder):
            below = name[len(folder) + 1 :] if folder else name
            label = below.split("/")[0] if "/" in below else ""
            if not images.is_image(name) or (not label and classes):
                ignored.append(name)
                continue
            with_image.add(label)
            deeper[label].add(below.split("/")[1] if below.count("/") > 1 else "")
            items.append(_Item(split, label or "(no class)", name, root / name))
        empty += [f"{split}: the folder {c} holds no image" for c in classes if c not in with_image]
        remarks += _domains(deeper)
    if not items:
        raise DataError("holds no image", where=str(root), expected=image_folder.LAYOUT)
    found = _report(str(root), items, _counted(items), decode=decode, class_names=empty, ignored=ignored)
    return replace(found, remarks=[*dict.fromkeys(remarks), *found.remarks])


def _domains(deeper: Mapping[str, set[str]]) -> list[str]:
    """What to say where all class folders hold folders of the same names, and no image beside them: as where domains
    (photos, sketches ...) hold the classes.

    Args:
        deeper: class folder -> names of the folders in it that hold images; "" for the class folder itself.
    """
    first, *others = deeper.values() if deeper else [set()]
    if not others or "" in first or len(first) < 2 or any(one != first for one in others):
        return []
    outer, inner = (f"{', '.join(names[:4])}{' ...' * (len(names) > 4)}" for names in (sorted(deeper), sorted(first)))
    said = f"all {len(deeper)} class folders ({outer}) hold folders of the same {len(first)} names ({inner})"
    return [f"{said}: if these are the classes, and the others domains, say `stream: domain` (docs/own-data.md)"]


def _counted(items: Iterable[_Item]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for item in items:
        counts[item.split][item.label] += 1
    return {split: dict(sorted(classes.items())) for split, classes in counts.items()}


def _report(
    source: str,
    items: Sequence[_Item],
    counts: dict[str, dict[str, int]],
    *,
    decode: bool,
    class_names: Sequence[str] = (),
    rows: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> CheckReport:
    workers = min(8, (os.cpu_count() or 1) + 2)  # files wait for the disk; Pillow decodes without Python's lock
    with ThreadPoolExecutor(workers) as pool:
        looks = list(pool.map(lambda item: _look(item, decode), items, chunksize=64))
    sound = [(item, look.key) for item, look in zip(items, looks) if not look.fault]
    duplicates, conflicts = _same(sound)
    return CheckReport(
        source=source,
        decoded=decode,
        counts=counts,
        unreadable=[(item.name, look.fault) for item, look in zip(items, looks) if look.fault],
        duplicates=duplicates,
        conflicts=conflicts,
        class_names=[*_differing(counts), *class_names],
        rows=list(rows),
        ignored=list(ignored),
        remarks=[*_remarks(counts), *_changed(items, looks)],
    )


ENDS = 4096
"""Bytes at the beginning and at the end of a file that are compared first."""


@dataclass(frozen=True, slots=True)
class _Look:
    key: Any = None
    """What identical images share."""
    fault: str = ""
    changes: tuple[str, ...] = ()
    """What a run does to it: keys of `images.CHANGES`."""


def _look(item: _Item, decode: bool) -> _Look:
    value = item.value
    try:
        if not isinstance(value, (str, os.PathLike)):
            data = value.read_bytes() if hasattr(value, "read_bytes") else value
            images.open_image(data, where=item.name)
            changes = images.changes(data, where=item.name)[0] if isinstance(data, bytes) else ()
            return _Look(hashlib.blake2b(_content(data)).digest(), changes=tuple(changes))
        changes, _ = images.changes(Path(value))
        size, head, tail = _ends(Path(value))
        if decode or not _ends_well(head, tail):
            images.open_image(value)
        return _Look((size, hashlib.blake2b(head + tail).digest()), changes=tuple(changes))
    except UnreadableExample as error:
        return _Look(fault=error.what)
    except OSError as error:
        return _Look(fault=f"the file cannot be read ({error.strerror})")


def _changed(items: Sequence[_Item], looks: Sequence[_Look]) -> Iterator[str]:
    """A line for each thing that a run does to images: how many, and the first."""
    for key, said in images.CHANGES.items():
        if befallen := [item.name for item, look in zip(items, looks) if key in look.changes]:
            several = len(befallen) > 1
            yield f"{len(befallen)} image{'s' * several}: {said} ({befallen[0]}{' ...' * several})"


def _ends(path: Path) -> tuple[int, bytes, bytes]:
    with path.open("rb") as file:
        head = file.read(ENDS)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - ENDS))
        return size, head, file.read(ENDS)


def _ends_well(head: bytes, tail: bytes) -> bool:
    """False for a JPEG or PNG without its end mark in the last bytes: it is truncated, or has an appendix."""
    if head.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in tail[-256:]
    return b"IEND" in tail[-64:] if head.startswith(b"\x89PNG") else head[:3] == b"GIF" or head[:2] == b"BM"


def _content(value: Any) -> bytes:
    if isinstance(value, (str, os.PathLike)):
        return Path(value).read_bytes()
    if hasattr(value, "read_bytes"):
        return value.read_bytes()
    return value if isinstance(value, bytes) else str(value.shape).encode() + value.tobytes()


def _same(items: Sequence[tuple[_Item, Any]]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(pairs in different splits, pairs of different classes in a split) with the same bytes."""
    alike: dict[Any, list[_Item]] = defaultdict(list)
    for item, key in items:
        alike[key].append(item)
    duplicates, conflicts = [], []
    for group in alike.values():
        if len({(item.split, item.label) for item in group}) < 2:
            continue
        by_content: dict[bytes, list[_Item]] = defaultdict(list)
        for item in group:
            by_content[hashlib.blake2b(_content(item.value)).digest()].append(item)
        for same in by_content.values():
            first: dict[str, _Item] = {}
            for item in same:
                before = first.setdefault(item.split, item)
                if before.label != item.label:
                    conflicts.append((before.name, item.name))
            one, *others = first.values()
            duplicates += [(one.name, other.name) for other in others]
    return duplicates, conflicts


def _differing(counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Classes of the training split that another has not, and the other way round."""
    known = counts.get("train", {})
    for split, classes in counts.items():
        if not known or split == "train":
            continue
        surplus, missing = sorted(classes.keys() - known.keys()), sorted(known.keys() - classes.keys())
        for name in surplus:
            near = nearest(name, missing) or nearest(name, known)
            yield f"{split}: class {name} is not in train" + (f" (nearest: {near})" if near else "")
        for name in missing:
            near = nearest(name, surplus)
            yield f"{split}: class {name} of train is missing" + (f" (nearest: {near})" if near else "")


def _remarks(counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    by_lower: dict[str, set[str]] = defaultdict(set)
    for name in (name for classes in counts.values() for name in classes):
        by_lower[name.lower()].add(name)
    for names in (sorted(names) for names in by_lower.values() if len(names) > 1):
        yield f"the classes {' and '.join(names)} differ in case alone"
    if numbers_for_names([name for classes in counts.values() for name in classes]):
        yield "the classes are numbers: methods that read class names need `label_names`"
    if counts.keys() == {"all"}:  # a share of each class becomes the test set
        single = sorted(name for name, n in counts["all"].items() if n == 1)
        yield from (f"class {name} has one image: it is for training, the class is never tested" for name in single)


def _distinct(names: Sequence[str]) -> list[str]:
    """A name a label: ImageNet has two classes called crane."""
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} (label {label})" for label, name in enumerate(names)]


def _label(target: Any, candidates: Sequence[str]) -> str:
    if isinstance(target, int) and 0 <= target < len(candidates):
        return candidates[target]
    return "(no class)"
