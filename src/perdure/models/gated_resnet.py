"""Gated TinyResNet-18 of Dynamos: gates choose the channels of its convolutions for each image.

Half a ResNet-18 (two stages) with gates on the second stage, or any list of gated convolutions. Knows how to
make it and how to read a checkpoint; the layers are in `perdure.layers.resnet`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from perdure.settings.config import Seed

if TYPE_CHECKING:
    from perdure.layers.resnet import ResNet

SECOND_STAGE = (
    "stage2.block0.conv1",
    "stage2.block0.conv2",
    "stage2.block1.conv1",
    "stage2.block1.conv2",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the gated network."""

    head_grows = True
    classes: Annotated[int, Field(gt=0)] = 10
    """Outputs of the head: all classes of the stream."""
    width: Annotated[int, Field(gt=0)] = 32
    """Channels of the stem (nf of the paper)."""
    stages: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(max_length=20)] = (1, 2)
    """Width of each stage as a multiple of `width`; (1, 2, 4, 8) is a whole ResNet-18."""
    gated: tuple[str, ...] = SECOND_STAGE
    """Gated convolutions by name; () gives the plain network."""
    hidden_ratio: Annotated[int, Field(gt=0)] = 16
    """A gate's hidden layer has its channels divided by this."""
    temperature: Annotated[float, Field(gt=0)] = 0.15
    """Temperature of the keep probability."""
    mean: tuple[float, ...] = ()
    """Input normalization per channel; none in the paper."""
    std: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Input normalization per channel; none in the paper."""
    seed: Seed | None = None
    """Seed of the initial weights; null: they follow the run's seed."""
    weights: Path | None = None
    """A checkpoint to start from: the official ``task_*.pth``, or a state dict of this network."""

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
            gated=config.gated,
            hidden_ratio=config.hidden_ratio,
            temperature=config.temperature,
            mean=config.mean,
            std=config.std,
        )
    if config.weights is not None:
        weights.load_into(net, config.weights, rename=from_official)
    return net


def from_official(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict with the keys of the official checkpoints renamed; others stay.

    The official file holds stem, stages and head twice (``conv1`` and ``_features.0`` ...): the second
    occurrence is dropped.
    """
    renamed: dict[str, Any] = {}
    for key, value in state.items():
        renamed[_renamed(key.removeprefix("net.").removeprefix("module."))] = value
    return renamed


_HEADS = (
    ("_features.0.", "stem.conv."),
    ("_features.1.", "stem.bn."),
    ("conv1.", "stem.conv."),
    ("bn1.", "stem.bn."),
    ("linear.", "head."),
    ("classifier.", "head."),
)
_PARTS = (
    ("channel_net.pw_conv.", "pw."),
    ("channel_net.bn.", "bn."),
    ("channel_net.prototype.0.", "fc1."),
    ("channel_net.prototype.2.", "fc2."),
    ("shortcut.0.", "shortcut.conv."),
    ("shortcut.1.", "shortcut.bn."),
)
_STAGES = tuple(f"_features.{3 + i}." for i in range(4))
_LAYERS = tuple(f"layer{1 + i}." for i in range(4))


def _renamed(key: str) -> str:
    for old, new in _HEADS:
        if key.startswith(old):
            return new + key.removeprefix(old)
    for prefixes in (_STAGES, _LAYERS):
        for index, prefix in enumerate(prefixes):
            if key.startswith(prefix):
                key = f"stage{index + 1}.block" + key.removeprefix(prefix)
    for old, new in _PARTS:
        key = key.replace(old, new)
    return key
