"""ImageNet-R: 30,000 renditions (art, cartoons, toys ...) of 200 ImageNet classes (Hendrycks et al., 2021).

Needs: 2.2 GB data.

Knows the split into 24,000 training and 6,000 test images that continual learning with CLIP uses (it ships
with perdure), over the archive as it is (`root/<wnid>/*.jpg`) or already divided into train/ and test/ (or val/).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perdure.types import Dataset

LAYOUT = "<wnid>/*.jpg, or train/<wnid>/*.jpg and test/<wnid>/*.jpg"
TODO = "Unpack https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar there, or set `root` to where it is."


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the ImageNet-R reader."""

    root: Path = Path("data/imagenet-r")
    """Folder with the 200 class folders, or with train/ and test/ (or val/) that hold them."""
    split: Literal["list", "folders", "test-only"] = "list"
    """`list`: the published 24,000/6,000 list decides, wherever the files lie. `folders`: train/ and test/ decide.
    `test-only`: all images are test images, as for test-time adaptation."""


def read(config: Config) -> Dataset:
    """Images in sorted file order."""
    from perdure.data import class_folders, lists

    names = lists.load("class_names.json")
    wnids: list[str] = names["imagenet_R__wnid"]
    root, parts = _parts(config)
    listings = {}
    for part in parts.values():
        class_folders.require_classes(root / part, wnids)
    if config.split == "folders":
        listings = {s: class_folders.list_images(root, wnids, under=part) for s, part in parts.items()}
    else:
        everything = _all(root, wnids, sorted(set(parts.values())))
        listings = {"test": everything} if config.split == "test-only" else _by_list(everything, parts)
    for split, listing in listings.items():
        class_folders.require_images(listing, wnids, where=root / parts[split])
    return Dataset(
        name="imagenet_r",
        kind="classify",
        candidates=tuple(names["imagenet_R"]),
        facts=class_folders.facts(listings, source="ImageNet-R", split=config.split),
        **{split: listing.examples() for split, listing in listings.items()},
    )


def files(config: Config) -> Iterable[Path]:
    """The listed images of a complete copy."""
    from perdure.data import lists

    root, parts = _parts(config)
    split = lists.load("imagenet_r_split.json.gz")
    return [root / parts[part] / name for part, paths in split.items() for name in paths]


def _parts(config: Config) -> tuple[Path, dict[str, str]]:
    """The root, and the folder below it that holds each split ('' where all lie together)."""
    from perdure.data.class_folders import require_folder

    root = config.root.expanduser()
    require_folder(root, layout=LAYOUT, todo=TODO)
    if not (root / "train").is_dir() and (root / "imagenet-r").is_dir():
        root = root / "imagenet-r"
    if not (root / "train").is_dir():
        if config.split == "folders":
            require_folder(root / "train", layout="train/ and test/, for split: folders", todo="Or set split: list")
        return root, {"train": "", "test": ""}
    test = "val" if (root / "val").is_dir() and not (root / "test").is_dir() else "test"
    require_folder(root / test, layout=LAYOUT, todo=TODO)
    return root, {"train": "train", "test": test}


def _all(root: Path, wnids: list[str], folders: list[str]):
    from perdure.data.class_folders import Listing, list_images

    together = Listing(root=root)
    for folder in folders:
        part = list_images(root, wnids, under=folder)
        together.paths += part.paths
        together.labels += part.labels
        together.sizes += part.sizes
    return together


def _by_list(everything, parts: dict[str, str]):
    """The published list's two splits; the files may lie in either folder."""
    from perdure.data import class_folders, lists

    bare = ["/".join(path.split("/")[-2:]) for path in everything.paths]
    place = {name: i for i, name in enumerate(bare)}
    split = lists.load("imagenet_r_split.json.gz")
    listed = {name for paths in split.values() for name in paths}
    class_folders.require_same_files(
        bare,
        listed,
        where=everything.root,
        listed_in="the published split",
        extra=True,
        hint="Or set `split: folders`.",
    )
    return {name: everything.select(sorted(place[path] for path in split[name])) for name in parts}
