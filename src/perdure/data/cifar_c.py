"""CIFAR-10-C and CIFAR-100-C: the test images of CIFAR under one corruption at one severity.

Needs: 2.9 GB data each.

Hendrycks & Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019. Knows
the arrays as they are published, ``<corruption>.npy`` with 10,000 images a severity and ``labels.npy``. All images are
test images; classes have the names and the order of CIFAR.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from perdure.data.imagenet_shifted import Corruption
from perdure.errors import DataError
from perdure.types import Dataset

EACH = 10_000
"""Images of a severity."""
FOLDERS = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}
CLASSES = {"cifar10": 10, "cifar100": 100}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the reader of CIFAR-C."""

    set: Literal["cifar10", "cifar100"] = "cifar10"
    """Which CIFAR."""
    root: Path = Path("data")
    """Folder that holds `CIFAR-10-C` or `CIFAR-100-C`, or that folder itself."""
    corruption: Corruption = "gaussian_noise"
    """The kind of corruption."""
    severity: Literal[1, 2, 3, 4, 5] = 5
    """Its strength."""


def read(config: Config) -> Dataset:
    """Images in the order of CIFAR's test set."""
    from perdure.data import image_arrays, lists

    folder = _folder(config)
    images, labels = (_array(folder / f"{name}.npy") for name in (config.corruption, "labels"))
    if images.dtype != np.uint8 or images.shape != (5 * EACH, 32, 32, 3):
        raise DataError(
            f"{images.dtype} {list(images.shape)}",
            where=str(folder / f"{config.corruption}.npy"),
            expected=f"uint8 [{5 * EACH}, 32, 32, 3]",
        )
    part = slice((config.severity - 1) * EACH, config.severity * EACH)
    classes = CLASSES[config.set]
    checked = image_arrays.check_labels(
        np.array(labels[part], int), images=EACH, classes=classes, where=folder / "labels.npy"
    )
    split = f"{config.corruption}/{config.severity}"
    return Dataset(
        name=f"{config.set}_c",
        kind="classify",
        candidates=tuple(lists.load("class_names.json")[config.set]),
        test=image_arrays.examples(images[part], checked, split=split),
        facts=image_arrays.facts({"test": (images[part], checked)}, source=FOLDERS[config.set])
        | {"corruption": config.corruption, "severity": config.severity},
    )


def files(config: Config) -> Iterable[Path]:
    """The arrays of a complete copy."""
    return [_folder(config) / f"{name}.npy" for name in (config.corruption, "labels")]


def _folder(config: Config) -> Path:
    root = config.root.expanduser()
    inner = root / FOLDERS[config.set]
    return inner if inner.is_dir() or not (root / "labels.npy").is_file() else root


def _array(path: Path) -> np.ndarray:
    """An array of the file, mapped into memory; pickles are refused."""
    if not path.is_file():
        todo = "Unpack the archive there, or set `root` to where it is."
        raise DataError("no such file", where=str(path), expected="the arrays of CIFAR-C", todo=todo)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as fault:
        raise DataError(f"no array of numpy ({fault})", where=str(path), todo="Fetch the archive again.") from None
