"""Your own images: a folder a class, with or without folders for training and test.

Needs: your data.

Knows `root/<class>/*.jpg`, and `root/train/<class>` with `root/test/<class>` or `root/val/<class>` (both: val is
for validation). Without such folders a keyed share of each class becomes the test set.
Class names are the names of the folders; labels follow their sorted order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from perdure.settings.config import Seed
from perdure.types import Dataset

LAYOUT = "<class>/*.jpg; or train/<class>/*.jpg and test/<class>/*.jpg"
TODO = "Set `root` to the folder that holds the class folders."
NAMES_OF = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the reader of any folder of images."""

    root: Path
    """Folder with one folder a class, or with train/ and test/ (or val/) that hold them."""
    classes: tuple[str, ...] = ()
    """Names of the class folders, in label order; empty: all folders, sorted."""
    test_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of each class that is the test set, where there is no folder for it; 0: none, 1: everything."""
    split_seed: Seed = 0
    """Another seed gives another split; independent of the run's seed."""


def read(config: Config) -> Dataset:
    """Images in sorted file order."""
    from perdure.data import class_folders

    root = class_folders.require_folder(config.root.expanduser(), layout=LAYOUT, todo=TODO)
    parts = split_folders(root)
    listings, classes = _divided(root, parts, config) if parts else _undivided(root, config)
    return Dataset(
        name="image_folder",
        kind="classify",
        candidates=classes,
        facts=class_folders.facts(listings, source=f"folder {root.name}", folder=root.name),
        **{split: listing.examples() for split, listing in listings.items()},
    )


def split_folders(root: Path) -> dict[str, str]:
    """Which folder below `root` holds which split; empty if `root` holds the class folders itself."""
    from perdure.data.class_folders import subfolders

    by_lower = {name.lower(): name for name in subfolders(root)}
    found = {s: next((by_lower[n] for n in names if n in by_lower), "") for s, names in NAMES_OF.items()}
    found = {split: folder for split, folder in found.items() if folder}
    if not {"train"} < found.keys():
        return {}  # a class may be called `test` or `train`; both together are splits
    if "test" not in found:
        found["test"] = found.pop("validation")
    return found


def _divided(root: Path, parts: dict[str, str], config: Config):
    from perdure.data import class_folders

    classes = config.classes or tuple(class_folders.subfolders(root / parts["train"]))
    _some(classes, root / parts["train"])
    listings = {}
    for split, folder in parts.items():
        class_folders.require_classes(root / folder, classes, extra=bool(config.classes))
        listings[split] = class_folders.list_images(root, classes, under=folder)
        class_folders.require_images(listings[split], classes, where=root / folder)
    return listings, classes


def _undivided(root: Path, config: Config):
    from perdure.data import class_folders

    classes = config.classes or tuple(class_folders.subfolders(root))
    _some(classes, root)
    class_folders.require_classes(root, classes, extra=bool(config.classes))
    everything = class_folders.list_images(root, classes)
    class_folders.require_images(everything, classes, where=root)
    if config.test_share == 1:
        return {"test": everything}, classes
    kept, taken = class_folders.split_by_share(
        everything.paths, everything.labels, config.test_share, "image_folder", config.split_seed
    )
    return {"train": everything.select(kept), "test": everything.select(taken)}, classes


def _some(classes: tuple[str, ...], where: Path) -> None:
    from perdure.errors import DataError

    if not classes:
        raise DataError("no class folders here", where=str(where), expected=LAYOUT, todo=TODO)
