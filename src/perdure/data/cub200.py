"""CUB-200-2011: 11,788 photographs of 200 bird species (Wah et al., 2011).

Needs: 1.2 GB data.

Knows the archive's tables (images.txt, image_class_labels.txt, train_test_split.txt) and its published split.
Class names are without the number of the folder, underscores kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from perdure.files.text_files import lines, read_text
from perdure.types import Dataset

TABLES = ("images.txt", "image_class_labels.txt", "train_test_split.txt")
LAYOUT = f"{', '.join(TABLES)} and images/ of CUB_200_2011"
TODO = "Unpack CUB_200_2011.tgz (https://data.caltech.edu/records/65de6-vp158) there, or set `root` to where it is."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the CUB-200 reader."""

    root: Path = Path("data/cub200")
    """Folder CUB_200_2011, or the one that holds it."""


def read(config: Config) -> Dataset:
    """5,994 training and 5,788 test images, in the order of images.txt."""
    from perdure.data import class_folders, lists
    from perdure.errors import DataError

    root = _root(config)
    paths, labels, in_train = (_table(root / name) for name in TABLES)
    names: list[str] = lists.load("class_names.json")["cub200"]
    for table, ids in ((TABLES[1], labels), (TABLES[2], in_train)):
        if ids.keys() != paths.keys():
            odd = sorted(ids.keys() ^ paths.keys())
            raise DataError(
                f"{table} and {TABLES[0]} disagree on {len(odd)} image ids, first: {odd[0]}", where=str(root)
            )
    listings = {split: class_folders.Listing(root=root) for split in ("train", "test")}
    for image, path in paths.items():
        label = _label(labels[image], path, names, where=f"{root / TABLES[1]}, image {image}")
        file = root / "images" / path
        if not file.is_file():
            raise DataError(f"images/{path} is missing", where=f"{root / TABLES[0]}, image {image}", todo=TODO)
        listing = listings["train" if in_train[image] == "1" else "test"]
        listing.paths.append(f"images/{path}")
        listing.labels.append(label)
        listing.sizes.append(file.stat().st_size)
    return Dataset(
        name="cub200",
        kind="classify",
        candidates=tuple(names),
        train=listings["train"].examples(),
        test=listings["test"].examples(),
        facts=class_folders.facts(listings, source="CUB-200-2011"),
    )


def files(config: Config) -> Iterable[Path]:
    """The tables and the folder of images."""
    root = _root(config)
    return [*(root / name for name in TABLES), root / "images"]


def _root(config: Config) -> Path:
    root = config.root.expanduser()
    return root / "CUB_200_2011" if (root / "CUB_200_2011").is_dir() else root


def _table(path: Path) -> dict[str, str]:
    """Lines `id value` -> {id: value}, in order."""
    from perdure.data import class_folders
    from perdure.errors import DataError

    class_folders.require_file(path, layout=LAYOUT, todo=TODO)
    rows: dict[str, str] = {}
    for number, line in enumerate(lines(read_text(path)), start=1):
        if not line.strip():
            continue
        key, _, value = line.strip().partition(" ")
        if not value or key in rows:
            found = f"{line.strip()!r}" if not value else f"image {key} for the second time"
            raise DataError(found, where=f"{path}:{number}", expected="`id value`, each id once")
        rows[key] = value
    return rows


def _label(text: str, path: str, names: list[str], *, where: str) -> int:
    """Label from 0, checked against the folder ``001.Black_footed_Albatross`` of the image."""
    from perdure.errors import DataError

    label = int(text) - 1 if text.isdecimal() else -1
    if not 0 <= label < len(names):
        raise DataError(f"class {text!r}", where=where, expected=f"a number from 1 to {len(names)}")
    folder = path.split("/")[0].partition(".")[2]
    if folder != names[label]:
        raise DataError(f"folder {path.split('/')[0]} for class {text}", where=where, expected=names[label])
    return label
