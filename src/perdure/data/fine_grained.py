"""Nine fine-grained sets with the splits of CoOp: flowers, food, textures, pets, scenes, objects, actions, cars, land.

Needs: 0.1 GB (EuroSAT) to 40 GB (SUN397) data.

Knows `split_zhou_*.json` (``{"train" | "val" | "test": [[path, label, name], ...]}``) beside each set's images.
FGVC-Aircraft, the tenth, has lists of its own: `aircraft`. Class names are those of the test-time adaptation papers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perdure.files.text_files import read_json
from perdure.types import Dataset

PLACES = {
    "flower102": ("oxford_flowers", "jpg", "OxfordFlowers"),
    "food101": ("food-101", "images", "Food101"),
    "dtd": ("dtd", "images", "DescribableTextures"),
    "pets": ("oxford_pets", "images", "OxfordPets"),
    "sun397": ("sun397", "SUN397", "SUN397"),
    "caltech101": ("caltech-101", "101_ObjectCategories", "Caltech101"),
    "ucf101": ("ucf101", "UCF-101-midframes", "UCF101"),
    "cars": ("stanford_cars", "cars_test", "StanfordCars"),
    "eurosat": ("eurosat", "2750", "EuroSAT"),
}
"""Set -> its folder below the common root, its folder of images, and the name in its split file."""
TODO = "Get the images and the file as CoOp's DATASETS.md says, or set `root`."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the reader of fine-grained sets."""

    set: Literal["flower102", "food101", "dtd", "pets", "sun397", "caltech101", "ucf101", "cars", "eurosat"]
    """Which set."""
    root: Path = Path("data")
    """Folder that holds the sets' folders (oxford_flowers, food-101 ...), or the set's own folder."""


def read(config: Config) -> Dataset:
    """Examples in the order of the split file."""
    from perdure.data import class_folders, lists

    own, images, path = _place(config)
    class_folders.require_file(path, layout=_layout(config), todo=TODO)
    names: list[str] = lists.load("test_time_classes.json")[config.set]
    content = _content(path)
    listings = {
        ours: _listing(content, theirs, own, images, names, path)
        for ours, theirs in (("train", "train"), ("validation", "val"), ("test", "test"))
        if theirs in content
    }
    return Dataset(
        name=config.set,
        kind="classify",
        candidates=tuple(names),
        facts=class_folders.facts(listings, source=f"{PLACES[config.set][2]}, split of CoOp"),
        **{split: listing.examples() for split, listing in listings.items()},
    )


def files(config: Config) -> Iterable[Path]:
    """The split file and, if it is there, the images that it lists."""
    own, images, path = _place(config)
    if not path.is_file():
        return [path]
    listed = [entry[0] for part in _content(path).values() for entry in part]
    return [path, *(own / _relative(own, images, name) for name in listed)]


def _place(config: Config) -> tuple[Path, str, Path]:
    folder, images, name = PLACES[config.set]
    root = config.root.expanduser()
    own = root / folder if (root / folder).is_dir() or not (root / f"split_zhou_{name}.json").is_file() else root
    return own, images, own / f"split_zhou_{name}.json"


def _layout(config: Config) -> str:
    folder, images, name = PLACES[config.set]
    return f"{folder}/split_zhou_{name}.json and {folder}/{images}/*"


def _content(path: Path) -> dict[str, list[list[Any]]]:
    from perdure.errors import DataError

    content = read_json(path, todo="Copy it again.")
    if not isinstance(content, dict) or "test" not in content:
        raise DataError("no 'test' in it", where=str(path), expected="train, val and test, each a list")
    return content


def _listing(content: dict, split: str, own: Path, images: str, names: list[str], path: Path):
    from perdure.data.class_folders import Listing
    from perdure.errors import DataError

    listing = Listing(root=own)
    for number, entry in enumerate(content[split]):
        where = f"{path}, {split}, record {number}"
        if not (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], str)):
            raise DataError(f"is {entry!r}", where=where, expected="[path, label, class name]")
        if not isinstance(entry[1], int) or not 0 <= entry[1] < len(names):
            raise DataError(f"label {entry[1]!r}", where=where, expected=f"a number from 0 to {len(names) - 1}")
        listing.paths.append(_relative(own, images, entry[0]))
        listing.labels.append(entry[1])
        listing.sizes.append(0)
    if not len(listing):
        raise DataError(f"'{split}' is empty", where=str(path))
    return listing


def _relative(own: Path, images: str, name: str) -> str:
    """Paths are relative to the folder of images; some copies of the cars' file repeat that folder's name."""
    return name if name.startswith(f"{images}/") and not (own / images / name).exists() else f"{images}/{name}"
