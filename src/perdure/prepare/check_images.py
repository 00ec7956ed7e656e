"""Looks through images before a run: counts, unreadable files, the same image in two splits, class names.

Knows data sets of `perdure.data`, folders of images, and CSV and JSON-lines lists. Does not know a reader's
layout (readers check their own) and changes nothing.

By default it reads headers, and the ends of JPEG and PNG files, which tell truncation; a suspicious one is decoded.
Files are compared by size and ends first, and by their whole content only where those agree.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure import images
from perdure.data import class_folders, image_folder
from perdure.errors import DataError, UnreadableExample
from perdure.files.text_files import read_json_lines
from perdure.settings.suggestions import nearest
from perdure.types import Dataset

FIRST = 10
"""Findings of a kind that `CheckReport.lines` shows."""


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What was found. Each list is empty where all is well."""

    source: str
    decoded: bool
    """Whether every pixel was decoded, or headers and ends read."""
    counts: dict[str, dict[str, int]]
    """Split -> class -> images, unreadable ones included."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """(image, what is wrong): missing, empty, truncated, not an image, too large."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """The same bytes in two splits."""
    conflicts: list[tuple[str, str]] = field(default_factory=list)
    """The same bytes under two classes of one split."""
    class_names: list[str] = field(default_factory=list)
    """Classes that one split has and another has not, with the nearest name; classes without an image."""
    rows: list[str] = field(default_factory=list)
    """Rows of a list without path or label."""
    ignored: list[str] = field(default_factory=list)
    """Files that no reader takes, by their suffix or place: a remark, not a fault."""
    remarks: list[str] = field(default_factory=list)
    """What a run takes as it is, and may not be meant: classes that are never tested, names that differ in case."""

    @property
    def images(self) -> int:
        return sum(sum(classes.values()) for classes in self.counts.values())

    @property
    def exit_code(self) -> int:
        """0: sound; 1: something was found; 2: not one image can be read."""
        if len(self.unreadable) >= self.images:
            return 2
        return int(any(getattr(self, kind) for kind in _FAULTS))

    def lines(self) -> list[str]:
        """The report as text."""
        how = "every pixel decoded" if self.decoded else "headers and ends read"
        text = [f"{self.source}: {self.images} images; {how}"]
        for split, classes in self.counts.items():
            text.append(f"  {split}: {sum(classes.values())} images, {len(classes)} classes{_extremes(classes)}")
        for kind, title in {**_FAULTS, **_REMARKS}.items():
            found = getattr(self, kind)
            if found:
                text.append(f"{title}: {len(found)}{_kinds(found) if kind == 'unreadable' else ''}")
                text += [f"  {_said(kind, item)}" for item in found[:FIRST]]
                text += [f"  ... and {len(found) - FIRST} more"] if len(found) > FIRST else []
        text.append("sound" if self.exit_code == 0 else "faults were found")
        return text

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        listed = {kind: [list(i) if isinstance(i, tuple) else i for i in getattr(self, kind)] for kind in _FAULTS}
        return {
            "source": self.source,
            "decoded": self.decoded,
            "images": self.images,
            "counts": self.counts,
            **listed,
            "ignored": self.ignored,
            "remarks": self.remarks,
            "exit_code": self.exit_code,
        }


_FAULTS = {
    "unreadable": "unreadable",
    "duplicates": "the same image in two splits",
    "conflicts": "the same image under two classes",
    "class_names": "class names",
    "rows": "rows of the list",
}
_REMARKS = {"ignored": "left out (no image suffix, or outside the class folders)", "remarks": "worth a look"}


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
    """Look through a folder of images, or a list (.csv, .jsonl) of them with the columns path, label and split.

    A folder holds class folders, or folders named train, val, test that hold them. Paths in a list are relative
    to the list.

    Raises:
        DataError: there is no such path, it holds no image, or the list cannot be read.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _check_folder(path, decode)
    if not path.is_file():
        near = nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else None
        hint = f"Did you mean {str(path.parent / near)!r}?" if near else ""
        raise DataError("no such file or folder", where=str(path), todo=hint)
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows}
    if path.suffix.lower() not in readers:
        raise DataError("is no list of images", where=str(path), expected="a folder, a .csv or a .jsonl")
    items, faulty = [], []
    for number, row in readers[path.suffix.lower()](path):
        file, label = _first(row, _COLUMNS["path"]), _first(row, _COLUMNS["label"])
        if file is None or label is None:
            faulty.append(f"line {number}: no {'path' if file is None else 'label'}")
            continue
        items.append(_Item(_first(row, _COLUMNS["split"]) or "all", label, file, path.parent / file))
    if not items:
        raise DataError("lists no image", where=str(path), expected="the columns path and label, and a row an image")
    return _report(str(path), items, _counted(items), decode=decode, rows=faulty)


_COLUMNS = {
    "path": ("path", "image", "file", "filename", "file_name", "filepath"),
    "label": ("label", "class", "class_name", "target", "category"),
    "split": ("split", "subset"),
}


@dataclass(frozen=True, slots=True)
class _Item:
    split: str
    label: str
    name: str
    value: Any
    """A path, bytes or a uint8 array."""


def _check_folder(root: Path, decode: bool) -> CheckReport:
    parts = image_folder.split_folders(root) or {"all": ""}
    items, ignored, empty = [], [], []
    for split, folder in parts.items():
        classes = class_folders.subfolders(root / folder)
        with_image = set()
        for name, _ in class_folders.walk(root, folder):
            below = name[len(folder) + 1 :] if folder else name
            label = below.split("/")[0] if "/" in below else ""
            if not images.is_image(name) or (not label and classes):
                ignored.append(name)
                continue
            with_image.add(label)
            items.append(_Item(split, label or "(no class)", name, root / name))
        empty += [f"{split}: the folder {c} holds no image" for c in classes if c not in with_image]
    if not items:
        raise DataError("holds no image", where=str(root), expected=image_folder.LAYOUT)
    return _report(str(root), items, _counted(items), decode=decode, class_names=empty, ignored=ignored)


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
    sound = [(item, key) for item, (key, fault) in zip(items, looks) if not fault]
    duplicates, conflicts = _same(sound)
    return CheckReport(
        source=source,
        decoded=decode,
        counts=counts,
        unreadable=[(item.name, fault) for item, (_, fault) in zip(items, looks) if fault],
        duplicates=duplicates,
        conflicts=conflicts,
        class_names=[*_differing(counts), *class_names],
        rows=list(rows),
        ignored=list(ignored),
        remarks=list(_remarks(counts)),
    )


ENDS = 4096
"""Bytes at the beginning and at the end of a file that are compared first."""


def _look(item: _Item, decode: bool) -> tuple[Any, str]:
    """(what identical images share, what is wrong or '')."""
    try:
        if not isinstance(item.value, (str, os.PathLike)):
            images.open_image(item.value, where=item.name)
            return hashlib.blake2b(_content(item.value)).digest(), ""
        if decode:
            images.open_image(item.value)
        else:
            images.image_size(Path(item.value))
        size, head, tail = _ends(Path(item.value))
        if not decode and not _ends_well(head, tail):
            images.open_image(item.value)
        return (size, hashlib.blake2b(head + tail).digest()), ""
    except UnreadableExample as error:
        return None, error.what
    except OSError as error:
        return None, f"the file cannot be read ({error.strerror})"


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


def _first(row: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    return next((str(row[key]).strip() for key in keys if row.get(key) not in (None, "")), None)


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _require_columns(path, reader.fieldnames or [])
            for row in reader:
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"is not CSV in UTF-8 ({error})", where=str(path)) from None


def _require_columns(path: Path, columns: Sequence[str]) -> None:
    for needed in ("path", "label"):
        if not set(_COLUMNS[needed]) & set(columns):
            near = nearest(needed, columns)
            raise DataError(
                f"has no column for the {needed}: {', '.join(columns) or 'it is empty'}",
                where=str(path),
                expected=f"one of {', '.join(_COLUMNS[needed])}",
                todo=f"Is it {near!r}? Rename it to {needed!r}." if near else "",
            )


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, row in read_json_lines(path):
        if not isinstance(row, dict):
            raise DataError("is no JSON object", where=f"{path}:{number}", expected='{"path": ..., "label": ...}')
        yield number, row


def _extremes(classes: Mapping[str, int]) -> str:
    if len(classes) < 2:
        return ""
    least, most = min(classes, key=classes.__getitem__), max(classes, key=classes.__getitem__)
    if classes[least] == classes[most]:
        return f", {classes[least]} each"
    return f", {classes[least]} ({least}) to {classes[most]} ({most}) each"


def _kinds(found: Sequence[tuple[str, str]]) -> str:
    """`` (2 empty, 1 truncated)``: what was said, without its details in brackets."""
    times = Counter(what.split(" (")[0] for _, what in found)
    return " (" + ", ".join(f"{n}: {what}" for what, n in times.most_common()) + ")" if len(times) > 1 else ""


def _said(kind: str, item: Any) -> str:
    if isinstance(item, str):
        return item
    return f"{item[0]}: {item[1]}" if kind == "unreadable" else f"{item[0]} = {item[1]}"
