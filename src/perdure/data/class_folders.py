"""Folders of images, one folder a class: listing, checking and turning into Examples.

Knows directory trees and nearest names. Does not know any particular data set, and opens no image.

The order is that of sorted relative paths, on every machine; the fingerprint is sha256 over relative
paths and sizes, so that two copies can be told apart without reading them.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure.errors import DataError
from perdure.images import SUFFIXES, is_image
from perdure.settings.suggestions import nearest
from perdure.types import Example, Examples


@dataclass(kw_only=True)
class Listing:
    """Images found below `root`: parallel lists, sorted."""

    root: Path
    paths: list[str] = field(default_factory=list)
    """Relative to `root`, with forward slashes; the ids of the Examples."""
    labels: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    """Bytes."""

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, positions: Iterable[int]) -> Listing:
        chosen = list(positions)
        return Listing(
            root=self.root,
            paths=[self.paths[i] for i in chosen],
            labels=[self.labels[i] for i in chosen],
            sizes=[self.sizes[i] for i in chosen],
        )

    def examples(self) -> Examples:
        return Examples(_ImageFiles(str(self.root), self.paths), self.labels)


@dataclass(frozen=True)
class _ImageFiles:
    """Makes Examples of image files (a class, so that loader workers can receive it)."""

    root: str
    paths: list[str]

    def __call__(self, index: int, target: Any) -> Example:
        name = self.paths[index]
        return Example(id=name, inputs={"image": Path(self.root, name)}, target=target)


def list_images(root: Path, folders: Sequence[str], *, under: str = "") -> Listing:
    """All images of ``root/under/<folder>`` (and below it), label = position of the folder in `folders`."""
    found = []
    for label, folder in enumerate(folders):
        prefix = "/".join(part for part in (under, folder) if part)
        found += [(path, label, size) for path, size in walk(root, prefix) if is_image(path)]
    found.sort()
    listing = Listing(root=root)
    for path, label, size in found:
        listing.paths.append(path)
        listing.labels.append(label)
        listing.sizes.append(size)
    return listing


def walk(root: Path, prefix: str = "") -> list[tuple[str, int]]:
    """``(path relative to root, bytes)`` of all visible files below ``root/prefix``, sorted. Follows links once."""
    found: list[tuple[str, int]] = []
    seen: set[tuple[int, int]] = set()
    waiting = [prefix]
    while waiting:
        here = waiting.pop()
        folder = os.path.join(root, here) if here else os.fspath(root)
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{here}/{entry.name}" if here else entry.name
                if _hidden(entry.name):
                    continue
                if entry.is_dir():
                    waiting.append(path)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    found.append((path, 0))
                else:
                    found.append((path, entry.stat().st_size))
    return sorted(found)


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, sorted."""
    return sorted(e.name for e in os.scandir(folder) if e.is_dir() and not _hidden(e.name))


def _hidden(name: str) -> bool:
    """Hidden, or what an unpacker of macOS leaves beside the files (`__MACOSX`)."""
    return name.startswith(".") or name == "__MACOSX"


def require_folder(folder: Path, *, layout: str, todo: str) -> Path:
    """`folder`, if it is one; else a DataError that names it, the layout and what to do."""
    if folder.is_dir():
        return folder
    kind = "is a file, not a folder" if folder.exists() else "is missing"
    parent = next(p for p in [*folder.parents, Path("/")] if p.exists())
    near = nearest(folder.name, subfolders(parent)) if parent == folder.parent and parent.is_dir() else None
    found = f"this folder {kind}" + (f" (there is {near!r})" if near else "")
    raise DataError(found, where=str(folder), expected=layout, todo=todo)


def require_file(path: Path, *, layout: str, todo: str) -> Path:
    """`path`, if it is a file; else a DataError that names it, the layout and what to do."""
    if path.is_file():
        return path
    kind = "is a folder, not a file" if path.exists() else "is missing"
    raise DataError(f"this file {kind}", where=str(path), expected=layout, todo=todo)


def require_classes(
    folder: Path, expected: Sequence[str], *, extra: bool = False, ignore: Collection[str] = (), todo: str = ""
) -> None:
    """Every expected class has a folder; with ``extra=False`` there is no other one but those to `ignore`.

    A missing class would shift all later labels silently, so it is never skipped.
    """
    found = [name for name in subfolders(folder) if name not in ignore]
    missing = [name for name in expected if name not in set(found)]
    surplus = [name for name in found if name not in set(expected)]
    if not missing and (extra or not surplus):
        return
    parts = []
    if missing:
        parts.append(f"{len(missing)} class folder(s) missing: {_few(missing, surplus)}")
    if surplus and not extra:
        parts.append(f"{len(surplus)} folder(s) that are no class: {_few(surplus, missing)}")
    raise DataError(
        "; ".join(parts),
        where=str(folder),
        expected=f"{len(expected)} class folders, {expected[0]} ... {expected[-1]}",
        todo=todo or "Complete the copy, or rename the folders.",
    )


def require_images(listing: Listing, folders: Sequence[str], *, where: Path) -> None:
    """Every class folder holds at least one image."""
    counts = Counter(listing.labels)
    empty = [name for label, name in enumerate(folders) if not counts[label]]
    if empty:
        raise DataError(
            f"{len(empty)} class folder(s) without an image: {_few(empty, [])}",
            where=str(where),
            expected=f"files ending in {', '.join(sorted(SUFFIXES))}",
            todo="Complete the copy, or remove the empty folders.",
        )


def require_same_files(
    found: Iterable[str], listed: Iterable[str], *, where: Path, listed_in: Any, extra: bool = False, hint: str = ""
) -> None:
    """The files of a list are on disk; with ``extra=False`` no other image is."""
    found, listed = set(found), set(listed)
    missing, surplus = sorted(listed - found), sorted(found - listed)
    if missing:
        what = f"{len(missing)} of {len(listed)} files listed in {listed_in} are missing: {_few(missing, [])}"
        raise DataError(what, where=str(where), todo=f"Complete the copy. {hint}".strip())
    if surplus and not extra:
        what = f"{len(surplus)} images are not listed in {listed_in}: {_few(surplus, [])}"
        raise DataError(what, where=str(where), todo=f"Remove them, or complete the list. {hint}".strip())


def _few(names: Sequence[str], others: Iterable[str], limit: int = 5) -> str:
    others = list(others)
    shown = []
    for name in names[:limit]:
        near = nearest(name, others)
        shown.append(f"{name} (nearest: {near})" if near else name)
    return ", ".join(shown) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def facts(listings: dict[str, Listing], **more: Any) -> dict[str, Any]:
    """Counts by split and the fingerprint of all files, for `Dataset.facts`."""
    files = [(path, size) for part in listings.values() for path, size in zip(part.paths, part.sizes)]
    return {
        **more,
        "counts": {split: len(listing) for split, listing in listings.items() if len(listing)},
        "fingerprint": fingerprint(files),
    }


def fingerprint(files: Iterable[tuple[str, int]]) -> str:
    """sha256 over sorted relative paths and sizes in bytes."""
    digest = hashlib.sha256()
    for path, size in sorted(files):
        digest.update(os.fsencode(path) + b"\0" + str(size).encode() + b"\n")
    return digest.hexdigest()


def keyed_order(ids: Sequence[str], *key: Any) -> list[int]:
    """Positions of `ids` in an order that depends on (key, id) only: the same with every library and machine."""
    salt = "/".join(str(part) for part in key)
    return sorted(range(len(ids)), key=lambda i: (_digest(salt, ids[i]), i))


def split_by_share(ids: Sequence[str], labels: Sequence[Any], share: float, *key: Any) -> tuple[list[int], list[int]]:
    """Positions of (kept, taken): of each class a `share` is taken, chosen by `keyed_order`; both sorted.

    At least one of each class is taken if it has two or more; a class of one keeps it.
    """
    by_class: dict[Any, list[int]] = {}
    for position, label in enumerate(labels):
        by_class.setdefault(label, []).append(position)
    taken: set[int] = set()
    for positions in by_class.values():
        count = min(len(positions) - 1, max(1, round(share * len(positions)))) if share > 0 else 0
        order = keyed_order([ids[p] for p in positions], *key)
        taken.update(positions[i] for i in order[:count])
    return [i for i in range(len(ids)) if i not in taken], sorted(taken)


def _digest(salt: str, name: str) -> bytes:
    return hashlib.sha256(f"{salt}/{name}".encode("utf-8", "surrogateescape")).digest()
