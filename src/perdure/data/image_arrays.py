"""Images that are already arrays in memory, as Examples; and fetching the archives that hold them.

Knows uint8 arrays, labels and torchvision's downloader. Does not know any particular file format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perdure.errors import DataError
from perdure.types import Example, Examples


def examples(images: np.ndarray, labels: Sequence[int], *, split: str) -> Examples:
    """Examples of uint8 images ``[n, height, width]`` or ``[n, height, width, 3]``; ids are ``split/00012``.

    A grey image is served as three equal channels, as `Example.inputs` promises.
    """
    assert images.dtype == np.uint8 and images.ndim in (3, 4) and len(images) == len(labels)
    return Examples(_Arrays(images, split), [int(label) for label in labels])


@dataclass(frozen=True, eq=False)
class _Arrays:
    images: np.ndarray
    split: str

    def __call__(self, index: int, target: Any) -> Example:
        image = self.images[index]
        if image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        return Example(id=f"{self.split}/{index:05d}", inputs={"image": image}, target=target)


def facts(splits: Mapping[str, tuple[np.ndarray, Sequence[int]]], *, source: str) -> dict[str, Any]:
    """For `Dataset.facts`: where from, counts, and the fingerprint of all (images, labels) by split."""
    return {
        "source": source,
        "counts": {split: len(labels) for split, (_, labels) in splits.items()},
        "fingerprint": fingerprint([a for images, labels in splits.values() for a in (images, np.array(labels))]),
    }


def fingerprint(arrays: Iterable[np.ndarray]) -> str:
    """sha256 over shapes and contents: archives of these data sets all have the same size."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str((array.shape, array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check_labels(labels: np.ndarray, *, images: int, classes: int, where: Path) -> list[int]:
    """Labels as a list of ints, one an image, each in 0 .. classes - 1; else a DataError."""
    flat = np.asarray(labels).reshape(-1)
    if len(flat) != images:
        raise DataError(f"{images} images but {len(flat)} labels", where=str(where), todo="Fetch the file again.")
    if len(flat) and not (np.issubdtype(flat.dtype, np.integer) and flat.min() >= 0 and flat.max() < classes):
        found = f"labels of {flat.dtype} from {flat.min()} to {flat.max()}"
        raise DataError(found, where=str(where), expected=f"integers from 0 to {classes - 1}")
    return [int(label) for label in flat]


def download(fetch: Callable[[], Any], *, what: str, root: Path) -> None:
    """Run one of torchvision's downloads; its failures become a DataError."""
    root.mkdir(parents=True, exist_ok=True)
    try:
        fetch()
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong checksum is a RuntimeError
        raise DataError(
            f"{what} could not be downloaded ({error})",
            where=str(root),
            todo="Check the connection, or fetch it elsewhere and copy it here.",
        ) from None
