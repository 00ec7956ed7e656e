"""Flickr30k with five captions an image, in Karpathy's split: 29,000 images to learn from, 1,000 to test with.

Needs: 5 GB data.

Knows LAVIS's `flickr30k_{train,val,test}.json` and Karpathy's `dataset_flickr30k.json`, in `root` or
`root/annotations`, with `flickr30k-images/` in `root`. Files are read by `perdure.data.captions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perdure.types import Dataset

NAMES = {"train": "flickr30k_train.json", "validation": "flickr30k_val.json", "test": "flickr30k_test.json"}
IMAGES = "flickr30k-images"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where Flickr30k is."""

    root: Path = Path("data/flickr30k")
    """Folder with `flickr30k-images` and the annotation files."""
    check_images: bool = True
    """See whether every image file is there before any work starts."""


def read(config: Config) -> Dataset:
    """Images with their captions, in the files' order. DataError if a file or an image is missing."""
    from perdure.data import captions

    root = config.root.expanduser()
    sources = captions.splits_of([root, root / "annotations"], NAMES, "dataset_flickr30k.json", "Flickr30k")
    # Karpathy's file names images without their folder, LAVIS's with it.
    images = root / IMAGES if "all" in sources else root
    return captions.dataset("flickr30k", sources, images, check_images=config.check_images)


def files(config: Config) -> list[Path]:
    """The annotation files of a complete copy."""
    return [config.root / "annotations" / name for name in NAMES.values()]
