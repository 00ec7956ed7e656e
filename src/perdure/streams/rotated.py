"""The same images turned by another angle in each task (rotated MNIST).

All classes are candidates in every task (domain-incremental). Knows angles. Does not know methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from perdure.settings.config import Named, Seed
from perdure.streams import transformed
from perdure.types import Dataset, Stream


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a rotated stream."""

    data: Annotated[Named, "data"]
    """A data set of kind `classify`."""
    tasks: Annotated[int, Field(ge=1)] = 20
    """Number of tasks, each with an angle of its own."""
    angles: tuple[float, ...] = ()
    """Degrees counter-clockwise, one a task; empty: drawn from 0 to 180 by `seed`."""
    seed: Seed = 0
    """Of the angles; independent of the run's seed."""
    train_per_class: Annotated[int, Field(ge=0)] | None = None
    """Only the first so many training images of each class."""
    test_per_class: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many test (and validation) images of each class."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each class's training images held out for validation; 0: the data set's own validation images. Test on
    them with ``evaluate.split=validation``."""

    def faults(self):
        if self.angles and len(self.angles) != self.tasks:
            yield "angles", f"{len(self.angles)} angles for {self.tasks} tasks"


def build(config: Config) -> Stream:
    """One task an angle.

    Raises:
        RecipeError: the data set is not of kind `classify`.
    """
    return assemble(config.data.build(), config)


def assemble(dataset: Dataset, config: Config) -> Stream:
    """The stream over a data set that is already read."""
    import numpy as np

    drawn = np.random.default_rng(config.seed).uniform(0, 180, config.tasks).tolist()
    changes = [(f"{angle:.1f} degrees", transformed.Rotate(angle)) for angle in config.angles or drawn]
    return transformed.domains("rotated", dataset, changes, config)
