"""Plain ResNet-18 for small images, as in the rehearsal literature: 3x3 stem, no max-pool.

``width: 64`` is the usual one, ``width: 20`` the "reduced" one, ``stages: [1, 2]`` with ``width: 32`` the plain
TinyResNet-18 beside Dynamos.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from perdure.settings.config import Seed

if TYPE_CHECKING:
    from perdure.layers.resnet import ResNet


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of ResNet-18."""

    head_grows = True
    classes: Annotated[int, Field(gt=0)] = 10
    """Outputs of the head: all classes of the stream."""
    width: Annotated[int, Field(gt=0)] = 64
    """Channels of the stem (nf)."""
    stages: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(max_length=20)] = (1, 2, 4, 8)
    """Width of each stage as a multiple of `width`."""
    mean: tuple[float, ...] = ()
    """Input normalization per channel."""
    std: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Input normalization per channel."""
    seed: Seed | None = None
    """Seed of the initial weights; null: they follow the run's seed."""
    weights: Path | None = None
    """A state dict of this network to start from."""

    def bytes_needed(self) -> int:
        widths = [self.width, *(self.width * factor for factor in self.stages)]
        convolutions = sum(9 * after * (before + 3 * after) for before, after in pairwise(widths))
        return 4 * (convolutions + widths[-1] * self.classes)


def load(config: Config) -> ResNet:
    """The network with fresh weights, or those of a checkpoint.

    Raises:
        WeightsError: the checkpoint is unreadable or of another network.
    """
    from perdure.layers import weights
    from perdure.layers.resnet import ResNet

    with weights.seeded(config.seed):
        net = ResNet(
            classes=config.classes,
            width=config.width,
            stages=config.stages,
            mean=config.mean,
            std=config.std,
        )
    if config.weights is not None:
        weights.load_into(net, config.weights)
    return net
