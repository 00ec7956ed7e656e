"""Looks through your own images before a run: counts, unreadable files, duplicates across splits, class names.

Knows folders of images, and CSV and JSON-lines lists of them. Does not know any particular data set.
Headers alone are read unless everything is to be decoded; files are hashed only where sizes agree.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from perdure import images
from perdure.data import class_folders
from perdure.data.image_folder import NAMES_OF
from perdure.errors import DataError, UnreadableExample
from perdure.nearest import nearest

PATH_KEYS = ("path", "image", "file", "filename", "file_name")
LABEL_KEYS = ("label", "class", "class_name", "target")
SPLIT_KEYS = ("split", "subset")


class Item(NamedTuple):
    """One image of a list."""

    split: str
    label: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found. A list of faults is empty where all is well."""

    counts: dict[str, dict[str, int]]
    """Split -> class -> images."""
    unreadable: list[str] = field(default_factory=list)
    """Missing, empty, broken or not images; one line each."""
    duplicates: list[tuple[Path, Path]] = field(default_factory=list)
    """The same bytes in two splits."""
    unmatched: list[str] = field(default_factory=list)
    """Classes of one split that the training split does not have."""
    empty: list[str] = field(default_factory=list)
    """Class folders without an image."""

    @property
    def sound(self) -> bool:
        return not (self.unreadable or self.duplicates or self.unmatched or self.empty)


def inspect(source: Path, *, decode: bool = False) -> Findings:
    """Look through a folder of images, or a list (.csv, .jsonl) of them.

    Args:
        decode: decode every pixel, not the headers alone.

    Raises:
        DataError: there is nothing to look through, or the list cannot be read.
    """
    empty: list[str] = []
    found = sorted(_items(source, empty))
    if not found:
        raise DataError("holds no image", where=str(source), expected="<class>/*.jpg, train/<class>/*.jpg, or a list")
    return examine(found, decode=decode, empty=empty)


def examine(items: Iterable[Item], *, decode: bool = False, empty: Iterable[str] = ()) -> Findings:
    """The same for images that are listed already."""
    items = list(items)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    unreadable = []
    for item in items:
        counts[item.split][item.label] += 1
        try:
            if decode:
                images.open_image(item.path)
            else:
                images.image_size(item.path)
        except UnreadableExample as error:
            unreadable.append(str(error))
    return Findings(
        counts={split: dict(sorted(found.items())) for split, found in sorted(counts.items())},
        unreadable=unreadable,
        duplicates=_duplicates(items),
        unmatched=_unmatched(counts),
        empty=list(empty),
    )


def _items(source: Path, empty: list[str]) -> Iterator[Item]:
    if source.is_dir():
        return _of_folder(source, empty)
    if not source.is_file():
        raise DataError("no such file or folder", where=str(source))
    if source.suffix == ".csv":
        return _of_rows(source, _csv_rows(source))
    if source.suffix in (".jsonl", ".ndjson"):
        return _of_rows(source, _json_rows(source))
    raise DataError("is no list of images", where=str(source), expected="a folder, .csv or .jsonl")


def _of_folder(root: Path, empty: list[str]) -> Iterator[Item]:
    """``root/<split>/<class>/...`` where folders are named like splits, else ``root/<class>/...``."""
    known = {name: split for split, names in NAMES_OF.items() for name in names}
    parts = [(known[d.name.lower()], d) for d in _folders(root) if d.name.lower() in known]
    if not any(split == "train" for split, _ in parts):
        parts = [("all", root)]
    for split, folder in parts:
        for class_folder in _folders(folder):
            files = [p for p in sorted(class_folder.rglob("*")) if p.suffix.lower() in class_folders.IMAGE_SUFFIXES]
            if not files:
                empty.append(str(class_folder))
            for path in files:
                yield Item(split, class_folder.name, path)


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _of_rows(file: Path, rows: Iterator[Mapping[str, Any]]) -> Iterator[Item]:
    """Columns ``path, label, split`` (or their usual other names); paths are relative to the list."""
    for number, row in enumerate(rows, start=1):
        path, label = _first(row, PATH_KEYS), _first(row, LABEL_KEYS)
        if path is None or label is None:
            missing = "path" if path is None else "label"
            near = nearest(missing, [str(key) for key in row])
            raise DataError(
                f"has no {missing}",
                where=f"{file}, record {number}",
                expected=f"one of {', '.join(PATH_KEYS if path is None else LABEL_KEYS)}",
                todo=f"Is it `{near}`?" if near else "",
            )
        yield Item(str(_first(row, SPLIT_KEYS) or "all"), str(label), file.parent / str(path))


def _first(row: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)


def _csv_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            yield from csv.DictReader(opened)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"is not CSV in UTF-8 ({error})", where=str(file)) from error


def _json_rows(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text ({error})", where=str(file)) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"is not JSON ({error})", where=f"{file}:{number}") from error
        if not isinstance(row, dict):
            raise DataError("is not a JSON object", where=f"{file}:{number}", expected='{"path": ..., "label": ...}')
        yield row


def _duplicates(items: list[Item]) -> list[tuple[Path, Path]]:
    """Pairs of files with the same bytes in different splits: the first of each split."""
    by_size: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        if item.path.is_file() and (size := item.path.stat().st_size):
            by_size[size].append(item)
    found = []
    for alike in by_size.values():
        if len({item.split for item in alike}) < 2:
            continue
        by_content: dict[bytes, dict[str, Path]] = defaultdict(dict)
        for item in alike:
            by_content[_digest(item.path)].setdefault(item.split, item.path)
        for places in by_content.values():
            first, *others = [places[split] for split in sorted(places, key=lambda s: (s != "train", s))]
            found += [(first, other) for other in others]
    return found


def _digest(path: Path) -> bytes:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def _unmatched(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    if "train" not in counts:
        return []
    known = list(counts["train"])
    lines = []
    for split, classes in counts.items():
        for label in sorted(set(classes) - set(known)):
            near = nearest(label, known)
            lines.append(f"{split}: class `{label}` is not in train" + (f"; is it `{near}`?" if near else ""))
    return lines
