"""CIFAR-10: 60,000 color images of 32 x 32 pixels in 10 classes (Krizhevsky, 2009).

Needs: 0.2 GB data.

Knows where the archive's files lie and how to fetch it. Does not know its format: see `cifar_archive`.
Class names are those of the archive, as they are (underscores kept).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from perdure.types import Dataset

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST = "test_batch"
META = ("batches.meta", "label_names")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the CIFAR-10 reader."""

    root: Path = Path("data/cifar10")
    """Folder that holds `cifar-10-batches-py`, or that folder itself."""
    download: bool = False
    """Fetch the archive (170 MB) into `root` if it is not there."""


def read(config: Config) -> Dataset:
    """50,000 training and 10,000 test images, in the order of the files."""
    from perdure.data import cifar_archive, image_arrays

    folder = _folder(config)
    if config.download and not all(file.is_file() for file in files(config)):
        from torchvision.datasets import CIFAR10, utils

        root = folder.parent
        image_arrays.download(
            lambda: utils.download_and_extract_archive(
                CIFAR10.url, str(root), filename=CIFAR10.filename, md5=CIFAR10.tgz_md5
            ),
            what="CIFAR-10",
            root=root,
        )
    return cifar_archive.read_archive(
        folder,
        name="cifar10",
        train=TRAIN,
        test=TEST,
        meta=META,
        labels_key="labels",
        classes=10,
        url=URL,
    )


def files(config: Config) -> Iterable[Path]:
    """What a complete copy has."""
    return [_folder(config) / name for name in (*TRAIN, TEST, META[0])]


def _folder(config: Config) -> Path:
    root = config.root.expanduser()
    return root if (root / TEST).is_file() else root / FOLDER
