"""nocaps: 4,500 Open Images with ten captions each, in, near and out of COCO's domain; to test with.

Needs: 3 GB data.

Knows the official `nocaps_val_4500_captions.json`, whose images say their domain, and the three files that
CapDec's users split it into (`nocaps_val_417_in-domain.json` ...), in `root` or `root/annotations`, with the images in
`root/images` (or wherever `images` says). Files are read by `perdure.data.captions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perdure.types import Dataset

OFFICIAL = "nocaps_val_4500_captions.json"
SPLIT = {
    "in": "nocaps_val_417_in-domain.json",
    "near": "nocaps_val_2670_near-domain.json",
    "out": "nocaps_val_1413_out-domain.json",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where nocaps is, and which part of it."""

    root: Path = Path("data/nocaps")
    """Folder with the annotation file and `images`."""
    domain: Literal["in", "near", "out", "all"] = "all"
    """Images whose objects COCO names (417), some of them (2,670), none (1,413), or all."""
    images: Path = Path("images")
    """Folder of the images, in `root` unless it is absolute."""
    check_images: bool = True
    """See whether every image file is there before any work starts."""


def read(config: Config) -> Dataset:
    """Images with their captions, in the file's order. DataError if a file or an image is missing."""
    from perdure.data import captions

    root = config.root.expanduser()
    folders = [root, root / "annotations"]
    own = [f / SPLIT[config.domain] for f in folders] if config.domain != "all" else []
    path = captions.first_file([f / OFFICIAL for f in folders] + own, "annotations of nocaps")
    domain = f"{config.domain}-domain"

    def wanted(one: captions.Captioned) -> bool:
        return config.domain == "all" or path.name != OFFICIAL or one.facts.get("domain") == domain

    name = "nocaps" if config.domain == "all" else f"nocaps-{config.domain}"
    images = root / config.images
    return captions.dataset(name, {"test": path}, images, check_images=config.check_images, keep=wanted)


def files(config: Config) -> list[Path]:
    """The annotation file of a complete copy."""
    return [config.root / OFFICIAL]
