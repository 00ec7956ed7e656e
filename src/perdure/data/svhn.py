"""SVHN: street-view house numbers, cropped digits of 32 x 32 pixels (Netzer et al., 2011).

Needs: 0.3 GB data.

Knows the two .mat files. Does not use the `extra` set. Label 10 of the files is the digit 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from perdure.types import Dataset

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
URL = "http://ufldl.stanford.edu/housenumbers/"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the SVHN reader."""

    root: Path = Path("data/svhn")
    """Folder with train_32x32.mat and test_32x32.mat."""
    download: bool = False
    """Fetch the two files (246 MB) into `root` if they are not there."""


def read(config: Config) -> Dataset:
    """73,257 training and 26,032 test images, in the order of the files; classes "0" to "9"."""
    from perdure.data import class_folders, image_arrays

    root = config.root.expanduser()
    if config.download and not all(file.is_file() for file in files(config)):
        from torchvision.datasets import SVHN

        for split in FILES:
            image_arrays.download(lambda s=split: SVHN(str(root), split=s, download=True), what="SVHN", root=root)
    splits = {}
    for split, name in FILES.items():
        path = class_folders.require_file(
            root / name,
            layout=f"{' and '.join(FILES.values())} in the root",
            todo=f"Copy them there from {URL}, or set `stream.data.download=true` or `stream.data.root`.",
        )
        splits[split] = _read(path)
    return Dataset(
        name="svhn",
        kind="classify",
        candidates=tuple(str(digit) for digit in range(10)),
        facts=image_arrays.facts(splits, source=URL),
        **{split: image_arrays.examples(*part, split=split) for split, part in splits.items()},
    )


def files(config: Config) -> Iterable[Path]:
    """What a complete copy has."""
    return [config.root.expanduser() / name for name in FILES.values()]


def _read(path: Path):
    import numpy as np
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    from perdure.data import image_arrays
    from perdure.errors import DataError

    try:
        content = loadmat(str(path), variable_names=["X", "y"])
    except (MatReadError, ValueError, TypeError, OSError, EOFError, NotImplementedError) as error:
        raise DataError(f"not a readable .mat file ({error})", where=str(path), todo="Fetch it again.") from None
    if "X" not in content or "y" not in content:
        raise DataError("'X' or 'y' is missing", where=str(path), expected="X [32, 32, 3, images] and y [images, 1]")
    images, labels = content["X"], content["y"].reshape(-1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3:
        found = f"X is {images.dtype} {list(images.shape)}"
        raise DataError(found, where=str(path), expected="uint8 [32, 32, 3, images]")
    if not np.issubdtype(labels.dtype, np.number) or not ((labels >= 0) & (labels <= 10)).all():
        raise DataError("labels outside 1 .. 10", where=str(path), expected="the digit, 10 for 0")
    digits = image_arrays.check_labels(labels.astype(np.int64) % 10, images=images.shape[3], classes=10, where=path)
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), digits
