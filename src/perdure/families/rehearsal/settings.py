"""Settings that rehearsal methods share. Defaults are Mammoth's; a method's own stand in its `Config`.

Knows numbers only; imports no torch, so that recipes can be checked quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class Descent:
    """How a network learns by stochastic gradient descent."""

    lr: Annotated[float, Field(gt=0)] = 0.03
    """Learning rate of SGD."""
    batch_size: Annotated[int, Field(gt=0)] = 10
    """Images of the stream a step."""
    epochs: Annotated[int, Field(gt=0)] = 1
    """Passes over each task."""
    augment: Literal["none", "crop_flip"] = "none"
    """Augmentation of the images, current and replayed."""


@dataclass(frozen=True, kw_only=True)
class StepDescent(Descent):
    """Descent whose learning rate falls in steps."""

    milestones: tuple[int, ...] = ()
    """Epochs from which the learning rate is a tenth."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What is kept of the stream, and how much of it comes back."""

    minibatch_size: Annotated[int, Field(gt=0)] = 10
    """Replayed images a step."""
    buffer_size: Annotated[int, Field(ge=0)] = 200
    """Slots of the replay memory."""
