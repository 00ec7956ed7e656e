"""CIFAR-100: 60,000 color images of 32 x 32 pixels in 100 classes (Krizhevsky, 2009).

Needs: 0.2 GB data.

Knows where the archive's files lie and how to fetch it. Does not know its format: see `cifar_archive`.
Class names are those of the archive, as they are (underscores kept).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from perdure.types import Dataset

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
FOLDER = "cifar-100-python"
TRAIN = ("train",)
TEST = "test"
META = ("meta", "fine_label_names")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the CIFAR-100 reader."""

    root: Path = Path("data/cifar100")
    """Folder that holds `cifar-100-python`, or that folder itself."""
    download: bool = False
    """Fetch the archive (169 MB) into `root` if it is not there."""


def read(config: Config) -> Dataset:
    """50,000 training and 10,000 test images, in the order of the files."""
    from perdure.data import cifar_archive, image_arrays

    folder = _folder(config)
    if config.download and not all(file.is_file() for file in files(config)):
        from torchvision.datasets import CIFAR100, utils

        root = folder.parent
        image_arrays.download(
            lambda: utils.download_and_extract_archive(
                CIFAR100.url, str(root), filename=CIFAR100.filename, md5=CIFAR100.tgz_md5
            ),
            what="CIFAR-100",
            root=root,
        )
    return cifar_archive.read_archive(
        folder,
        name="cifar100",
        train=TRAIN,
        test=TEST,
        meta=META,
        labels_key="fine_labels",
        classes=100,
        url=URL,
    )


def files(config: Config) -> Iterable[Path]:
    """What a complete copy has."""
    return [_folder(config) / name for name in (*TRAIN, TEST, META[0])]


def _folder(config: Config) -> Path:
    root = config.root.expanduser()
    return root if (root / TEST).is_file() else root / FOLDER
