"""FGVC-Aircraft: 10,000 pictures of aircraft of 100 variants (Maji et al., 2013).

Needs: 2.7 GB data.

Knows variants.txt (the order of the labels), images_variant_{train,val,test}.txt and images/<id>.jpg.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from perdure.files.text_files import lines, read_text
from perdure.types import Dataset

LAYOUT = "variants.txt, images_variant_{train,val,test}.txt and images/<id>.jpg"
TODO = "Unpack https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft there, or set `root` to its folder `data`."
SPLITS = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the FGVC-Aircraft reader."""

    root: Path = Path("data/fgvc_aircraft")
    """Folder with variants.txt."""


def read(config: Config) -> Dataset:
    """Examples in the order of the lists."""
    from perdure.data import class_folders

    root = config.root.expanduser()
    variants = _lines(root / "variants.txt")
    listings = {
        ours: _listing(root, f"images_variant_{theirs}.txt", variants)
        for ours, theirs in SPLITS.items()
        if ours == "test" or (root / f"images_variant_{theirs}.txt").is_file()
    }
    return Dataset(
        name="aircraft",
        kind="classify",
        candidates=tuple(variants),
        facts=class_folders.facts(listings, source="FGVC-Aircraft"),
        **{split: listing.examples() for split, listing in listings.items()},
    )


def files(config: Config) -> Iterable[Path]:
    """The lists of a complete copy."""
    root = config.root.expanduser()
    return [root / "variants.txt", *(root / f"images_variant_{part}.txt" for part in SPLITS.values())]


def _lines(path: Path) -> list[str]:
    from perdure.data import class_folders

    class_folders.require_file(path, layout=LAYOUT, todo=TODO)
    return [line.strip() for line in lines(read_text(path)) if line.strip()]


def _listing(root: Path, name: str, variants: list[str]):
    from perdure.data.class_folders import Listing
    from perdure.errors import DataError
    from perdure.settings.suggestions import nearest

    listing, label_of = Listing(root=root), {variant: i for i, variant in enumerate(variants)}
    for number, line in enumerate(_lines(root / name), start=1):
        identity, _, variant = line.partition(" ")
        if variant not in label_of:
            near = nearest(variant, variants)
            raise DataError(
                f"variant {variant!r} is unknown" + (f" (nearest: {near})" if near else ""),
                where=f"{root / name}:{number}",
                expected="<id> <variant>",
            )
        listing.paths.append(f"images/{identity}.jpg")
        listing.labels.append(label_of[variant])
        listing.sizes.append(0)
    if not len(listing):
        raise DataError("the list is empty", where=str(root / name))
    return listing
