"""ImageNet-1k (ILSVRC 2012): 1000 classes, 1.28 million training and 50,000 validation images.

Needs: 150 GB data.

Knows the layout with one folder a class (wnid) under train/ and val/. The labelled validation set is the test
set. Two names occur twice among the 1000 (missile, sunglasses), as in the published list.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perdure.types import Dataset

LAYOUT = "train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, with 1000 folders each"
TODO = "Unpack ILSVRC 2012 there, one folder a class, or set `root` to where it is."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the ImageNet reader."""

    root: Path = Path("data/imagenet")
    """Folder with train/ and val/."""
    splits: Literal["both", "test"] = "both"
    """`test` reads val/ alone, for zero-shot and test-time work."""


def read(config: Config) -> Dataset:
    """Images in sorted file order; labels are places of the wnids in sorted order."""
    from perdure.data import class_folders, lists

    root = config.root.expanduser()
    wnids: list[str] = lists.load("imagenet_wnids.json")
    listings = {}
    for split, folder in (("train", "train"), ("test", "val")):
        if split == "train" and config.splits == "test":
            continue
        class_folders.require_folder(root / folder, layout=LAYOUT, todo=TODO)
        class_folders.require_classes(root / folder, wnids)
        listings[split] = class_folders.list_images(root, wnids, under=folder)
        class_folders.require_images(listings[split], wnids, where=root / folder)
    return Dataset(
        name="imagenet",
        kind="classify",
        candidates=tuple(lists.load("class_names.json")["imagenet1000"]),
        facts=class_folders.facts(listings, source="ILSVRC 2012"),
        **{split: listing.examples() for split, listing in listings.items()},
    )


def files(config: Config) -> Iterable[Path]:
    """The class folders of a complete copy."""
    from perdure.data import lists

    folders = ("train", "val") if config.splits == "both" else ("val",)
    return [config.root.expanduser() / folder / w for folder in folders for w in lists.load("imagenet_wnids.json")]
