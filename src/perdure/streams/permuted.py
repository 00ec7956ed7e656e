"""The same images with their pixels in another fixed order in each task (permuted MNIST).

All classes are candidates in every task (domain-incremental). Knows pixel orders. Does not know methods.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from perdure.errors import DataError
from perdure.images import open_image
from perdure.settings.config import Named, Seed
from perdure.streams import transformed
from perdure.types import Dataset, Stream

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a permuted stream."""

    data: Annotated[Named, "data"]
    """A data set of kind `classify`, with images of one size."""
    tasks: Annotated[int, Field(ge=1)] = 20
    """Number of tasks, each with an order of pixels of its own."""
    seed: Seed = 0
    """Of the orders; independent of the run's seed."""
    train_per_class: Annotated[int, Field(ge=0)] | None = None
    """Only the first so many training images of each class."""
    test_per_class: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many test (and validation) images of each class."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each class's training images held out for validation; 0: the data set's own validation images. Test on
    them with ``evaluate.split=validation``."""


def build(config: Config) -> Stream:
    """One task an order of pixels.

    Raises:
        RecipeError: the data set is not of kind `classify`.
    """
    return assemble(config.data.build(), config)


def assemble(dataset: Dataset, config: Config) -> Stream:
    """The stream over a data set that is already read."""
    pixels = _pixels(dataset)
    changes = [(f"order {index}", Permute((config.seed, index), pixels)) for index in range(config.tasks)]
    return transformed.domains("permuted", dataset, changes, config)


@dataclass(frozen=True)
class Permute:
    """Puts the pixels of an image ``[height, width, channels]`` into a keyed order, the same in all channels."""

    key: tuple[int, ...]
    pixels: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        if height * width != self.pixels:
            raise DataError(
                f"an image of {height} x {width} pixels",
                where="permuted stream",
                expected=f"{self.pixels} pixels, as the first training image has",
                todo="Resize the images of the data set to one size.",
            )
        flat = image.reshape(height * width, -1)
        return flat[_order(self.key, self.pixels)].reshape(image.shape)

    def facts(self) -> dict[str, Any]:
        """The key, and a digest by which a replay sees that its numpy draws the same order."""
        order = _order(self.key, self.pixels).astype("<i8").tobytes()
        return {"order": list(self.key), "sha256": hashlib.sha256(order).hexdigest()}


def _pixels(dataset: Dataset) -> int:
    """Of the first training image."""
    import numpy as np

    if dataset.kind != "classify" or not len(dataset.train):
        return 0
    image = dataset.train[0].inputs["image"]
    if not isinstance(image, np.ndarray):
        image = np.asarray(open_image(image, where=dataset.train[0].id))
    return image.shape[0] * image.shape[1]


def _order(key: tuple[int, ...], pixels: int) -> np.ndarray:
    found = _ORDERS.get((key, pixels))
    if found is None:
        import numpy as np

        found = _ORDERS[key, pixels] = np.random.default_rng(key).permutation(pixels)
    return found


_ORDERS: dict[tuple[tuple[int, ...], int], Any] = {}
"""Orders that were made: one a task."""
