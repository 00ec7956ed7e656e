"""The same images with their pixels in another fixed order in each task (permuted MNIST).

All classes are candidates in every task (domain-incremental). Knows pixel orders. Does not know methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from perdure.config import Named
from perdure.streams import selection, transformed
from perdure.types import Stream

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a permuted stream."""

    data: Annotated[Named, "data"]
    """A data set of kind `classify`, with images of one size."""
    tasks: Annotated[int, Field(ge=1)] = 20
    """Number of tasks, each with an order of pixels of its own."""
    seed: int = 0
    """Of the orders; independent of the run's seed."""
    train_per_class: Annotated[int, Field(ge=0)] | None = None
    """Only the first so many training images of each class."""
    test_per_class: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many test images of each class."""


def build(config: Config) -> Stream:
    """One task an order of pixels.

    Raises:
        RecipeError: the data set is not of kind `classify`.
    """
    dataset = config.data.build()
    rules = selection.Rules(train_per_class=config.train_per_class, test_per_class=config.test_per_class)
    changes = [(f"order {index}", Permute((config.seed, index))) for index in range(config.tasks)]
    return transformed.domains(f"permuted {dataset.name}", dataset, changes, rules, source=config.data)


@dataclass(frozen=True)
class Permute:
    """Puts the pixels of an image ``[height, width, channels]`` into a keyed order, the same in all channels."""

    key: tuple[int, ...]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        flat = image.reshape(height * width, -1)
        return flat[_order(self.key, height * width)].reshape(image.shape)

    def facts(self) -> dict[str, Any]:
        return {"order": list(self.key)}


def _order(key: tuple[int, ...], pixels: int) -> np.ndarray:
    found = _ORDERS.get((key, pixels))
    if found is None:
        import numpy as np

        found = _ORDERS[key, pixels] = np.random.default_rng(key).permutation(pixels)
    return found


_ORDERS: dict[tuple[tuple[int, ...], int], Any] = {}
"""Orders that were made: one a task."""
