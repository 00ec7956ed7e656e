"""COCO 2014 with five captions an image, in Karpathy's split: 113,287 images to learn from, 5,000 to test with.

Needs: 20 GB data.

Knows LAVIS's `coco_karpathy_{train,val,test}.json` and Karpathy's `dataset_coco.json`, in `root` or
`root/annotations`, with `train2014/` and `val2014/` in `root`; an image's number is in its name
(`COCO_val2014_000000000042.jpg`) where the file does not say it. Files are read by `perdure.data.captions`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from perdure.types import Dataset

NAMES = {
    "train": "coco_karpathy_train.json",
    "validation": "coco_karpathy_val.json",
    "test": "coco_karpathy_test.json",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Where COCO's captions are."""

    root: Path = Path("data/coco2014")
    """Folder with `train2014`, `val2014` and the annotation files."""
    check_images: bool = True
    """See whether every image file is there before any work starts."""


def read(config: Config) -> Dataset:
    """Images with their captions, in the files' order. DataError if a file or an image is missing."""
    from perdure.data import captions

    root = config.root.expanduser()
    sources = captions.splits_of([root, root / "annotations"], NAMES, "dataset_coco.json", "COCO")
    return captions.dataset("coco_captions", sources, root, check_images=config.check_images, image_id=image_id)


def image_id(path: str) -> int | None:
    """COCO's number of an image, from the name that COCO 2014 gave its file; None for another name."""
    found = re.search(r"COCO_(?:train|val|test)2014_(\d{12})\.jpg$", path)
    return int(found[1]) if found else None


def files(config: Config) -> list[Path]:
    """The annotation files of a complete copy."""
    return [config.root / name for name in NAMES.values()]
