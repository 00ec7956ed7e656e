"""Digits: 1,797 real handwritten digits of 8 x 8 pixels that come with scikit-learn (Alpaydin and Kaynak, 1998).

Needs: nothing to download.

Knows scikit-learn's copy and a keyed split of it, since it has none of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from perdure.settings.config import Seed
from perdure.types import Dataset


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the digits reader."""

    size: Annotated[int, Field(ge=8, le=512)] = 8
    """Height and width of an image in pixels; above 8 it is enlarged bilinearly."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of each class that is the test set."""
    split_seed: Seed = 0
    """Another seed gives another split; independent of the run's seed."""


def read(config: Config) -> Dataset:
    """Images of three equal channels in the order of scikit-learn; classes "0" to "9"."""
    import numpy as np
    from sklearn.datasets import load_digits

    from perdure.data import class_folders, image_arrays

    bunch: Any = load_digits()
    labels = [int(label) for label in bunch.target]
    pixels = np.round(bunch.images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # stored as 0 .. 16
    ids = [f"digits/{i:05d}" for i in range(len(labels))]
    kept, taken = class_folders.split_by_share(ids, labels, config.test_share, "digits", config.split_seed)
    everything = image_arrays.examples(_enlarge(pixels, config.size), labels, split="digits")
    return Dataset(
        name="digits",
        kind="classify",
        candidates=tuple(str(digit) for digit in range(10)),
        train=everything.select(kept),
        test=everything.select(taken),
        facts={
            "source": "sklearn.datasets.load_digits",
            "counts": {"train": len(kept), "test": len(taken)},
            "fingerprint": image_arrays.fingerprint([pixels, np.array(labels)]),
            "split_seed": config.split_seed,
        },
    )


def _enlarge(pixels, size: int):
    import numpy as np
    from PIL import Image

    if size == pixels.shape[1]:
        return pixels
    resized = [Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR) for image in pixels]
    return np.stack([np.asarray(image) for image in resized])
