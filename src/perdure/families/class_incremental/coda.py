"""How the code of CODA-Prompt trains prompts, its own and those that it compares with.

Knows the schedule and prefixes whose first half is for keys. Does not know where prompts come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from perdure import training
from perdure.families.class_incremental import prompting
from perdure.families.class_incremental.settings import Prompting
from perdure.models.vit import Insertions


@dataclass(frozen=True, kw_only=True)
class Settings(Prompting):
    """As published for CIFAR-100."""

    epochs: Annotated[int, Field(ge=1)] = 20
    """Passes over a task's images. Published for ImageNet-R: 50."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images a step."""
    smallest_crop: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Least share of an image's area in a crop."""
    drop_last: bool = True
    """Leave out an epoch's last batch where it is not full, as published; never a task's only one."""


Length = Annotated[int, Field(ge=2, multiple_of=2)]
"""Of a prompt: half of its vectors stand before keys, the others before values."""


class Prompted(prompting.Prompted):
    """Prompt methods under CODA-Prompt's schedule; prompts start uniform in 0..1."""

    low = 0.0

    def fit(self) -> training.Fit:
        config = self.config
        return training.Fit(epochs=config.epochs, lr=config.lr, schedule=schedule(config.epochs))

    @property
    def drop_last(self) -> bool:  # type: ignore[override]
        return self.config.drop_last

    def inserted(self, pixels: Tensor, prompts: Mapping[int, Float[Tensor, "images length dim"]]) -> Any:
        """The class token with prompts, by block, whose first half stands before keys and the rest before values."""
        prefixes = {block: halves(prompt) for block, prompt in prompts.items()}
        return self.vit.image_features(pixels, Insertions(prefixes=prefixes))


def halves(prompt: Float[Tensor, "... length dim"]) -> tuple[Tensor, Tensor]:
    """For keys and for values: attention takes as many of the one as of the other."""
    middle = prompt.shape[-2] // 2
    return prompt[..., :middle, :], prompt[..., middle:, :]


def schedule(epochs: int) -> Callable[[int, int], float]:
    """``cos(99 pi e / (200 (epochs - 1)))`` with the epoch before as e, so that two epochs have the full rate.

    With 3 epochs: 1, 1, cos(99 pi / 400) = 0.7126. One epoch has the full rate.
    """

    def factor(epoch: int, _step: int) -> float:
        return math.cos(99 * math.pi * max(epoch - 1, 0) / (200 * max(epochs - 1, 1)))

    return factor
