"""Caltech-101: pictures of objects in 101 classes, 31 to 800 each (Li, Andreeto, Ranzato and Perona).

Needs: 0.2 GB data.

Knows the folder 101_ObjectCategories. There is no published split: a keyed one is made. The folder
BACKGROUND_Google is never a class. Class names are those of the folders in lower case, underscores kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from perdure.settings.config import Seed
from perdure.types import Dataset

LAYOUT = "101_ObjectCategories/<class>/image_0001.jpg ..., or the class folders themselves"
TODO = "Unpack https://data.caltech.edu/records/mzrjq-6wc02 there, or set `root` to where it is."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the Caltech-101 reader."""

    root: Path = Path("data/caltech101")
    """Folder with the class folders, or one above it."""
    classes: Literal["101", "100"] = "101"
    """`100` leaves out Faces_easy, which repeats Faces, as test-time adaptation papers do."""
    test_share: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of each class that is the test set."""
    split_seed: Seed = 0
    """Another seed gives another split; independent of the run's seed."""


def read(config: Config) -> Dataset:
    """Images in sorted file order."""
    from perdure.data import class_folders, lists

    root = _root(config)
    listed: list[str] = lists.load("class_names.json")["caltech101"]
    names = [name for name in listed if config.classes == "101" or name != "faces_easy"]
    on_disk = {folder.lower(): folder for folder in class_folders.subfolders(root)}
    folders = [on_disk.get(name, name) for name in names]
    left_out = {"BACKGROUND_Google"} | ({"Faces_easy"} if config.classes == "100" else set())
    class_folders.require_classes(root, folders, ignore=left_out)
    everything = class_folders.list_images(root, folders)
    class_folders.require_images(everything, folders, where=root)
    kept, taken = class_folders.split_by_share(
        everything.paths, everything.labels, config.test_share, "caltech101", config.split_seed
    )
    listings = {"train": everything.select(kept), "test": everything.select(taken)}
    return Dataset(
        name="caltech101",
        kind="classify",
        candidates=tuple(names),
        train=listings["train"].examples(),
        test=listings["test"].examples(),
        facts=class_folders.facts(listings, source="Caltech-101", split_seed=config.split_seed),
    )


def _root(config: Config) -> Path:
    from perdure.data.class_folders import require_folder

    root = config.root.expanduser()
    inner = ("101_ObjectCategories", "caltech-101/101_ObjectCategories", "caltech101/101_ObjectCategories")
    found = next((root / folder for folder in inner if (root / folder).is_dir()), root)
    return require_folder(found, layout=LAYOUT, todo=TODO)
