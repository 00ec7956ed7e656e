"""Your own images with captions: any JSON that names images and what is said of them.

Needs: your data.

Knows where the files are; their layouts (Karpathy's, LAVIS's, COCO's) are in `perdure.data.captions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perdure.types import Dataset


@dataclass(frozen=True, kw_only=True)
class Config:
    """Annotation files and the folder of their images."""

    root: Path = Path(".")
    """Folder that the image paths of the files start from."""
    annotations: Path | None = None
    """One file whose records name their split; records without one are for testing."""
    train: Path | None = None
    """Or one file a split."""
    validation: Path | None = None
    """Images for validation."""
    test: Path | None = None
    """Images to test with."""
    name: str = "captioned_images"
    """What the data set is called."""
    check_images: bool = True
    """See whether every image file is there before any work starts."""

    def faults(self):
        if not (self.annotations or self.train or self.validation or self.test):
            yield "annotations", "no annotation file: name one here, or under train, validation, test"


def read(config: Config) -> Dataset:
    """Images with their captions, in the files' order. DataError names file and record of a fault."""
    from perdure.data import captions

    sources = {"all": config.annotations, "train": config.train, "validation": config.validation, "test": config.test}
    named = {split: path for split, path in sources.items() if path is not None}
    return captions.dataset(config.name, named, config.root.expanduser(), check_images=config.check_images)


def files(config: Config) -> list[Path]:
    """The annotation files."""
    return [p for p in (config.annotations, config.train, config.validation, config.test) if p is not None]
