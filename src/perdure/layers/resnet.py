"""A small residual network of basic blocks for small images, any of whose block convolutions may be gated.

Knows layers and masks. Does not know losses, data or weights on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perdure.errors import DataError, RecipeError, TrainingError
from perdure.layers.gates import Gate, Pooling, log_probability, sampled_actions, threshold_actions


class Gated(NamedTuple):
    """What a gated pass returns. Gates are in network order; channels are those of all gates, side by side."""

    logits: Float[Tensor, "images classes"]
    actions: Float[Tensor, "images channels"]
    """1: the channel is kept."""
    policy: Float[Tensor, "images channels"]
    """Policy logits."""
    log_probs: Float[Tensor, "images gates"]
    """Log-probability of the actions, summed over a gate's channels."""


class ResNet(nn.Module):
    """conv3x3 stem, stages of two basic blocks (stride 2 from the second stage on), average pool, linear head.

    ``net(x)`` is the plain network: gates, where there are any, are bypassed. ``net.gated(x, ...)`` uses them.
    With stages (1, 2) it is the TinyResNet-18 of Dynamos, with (1, 2, 4, 8) the ResNet-18 of the rehearsal
    literature. An image with one channel is repeated to `channels`.

    Args:
        classes: outputs of the head.
        width: channels of the stem.
        stages: width of each stage, as a multiple of `width`.
        gated: names of gated convolutions: ``stage2.block0.conv1`` ...
        hidden_ratio: hidden layer of a gate, as a divisor of its channels.
        temperature: of the gates' keep probability.
        mean, std: input normalization per channel; () for none.
    """

    def __init__(
        self,
        *,
        classes: int,
        width: int,
        stages: Sequence[int] = (1, 2),
        gated: Sequence[str] = (),
        hidden_ratio: int = 16,
        temperature: float = 0.15,
        channels: int = 3,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.classes, self.channels = classes, channels
        self.stem = ConvBn(channels, width, 3, stride=1)
        self.stage_names = [f"stage{i + 1}" for i in range(len(stages))]
        known = [f"{stage}.block{b}.conv{c}" for stage in self.stage_names for b in (0, 1) for c in (1, 2)]
        for name in gated:
            if name not in known:
                raise RecipeError(f"no convolution '{name}' to gate", expected=f"some of {', '.join(known)}")
        inputs = width
        for index, (stage, factor) in enumerate(zip(self.stage_names, stages)):
            blocks = nn.Sequential()
            for b in (0, 1):
                name = f"{stage}.block{b}"
                block = Block(
                    inputs,
                    width * factor,
                    stride=2 if index and not b else 1,
                    gated=(f"{name}.conv1" in gated, f"{name}.conv2" in gated),
                    hidden_ratio=hidden_ratio,
                    temperature=temperature,
                )
                blocks.add_module(f"block{b}", block)
                inputs = width * factor
            self.add_module(stage, blocks)
        self.head = nn.Linear(inputs, classes)
        self.mean: Tensor | None
        self.std: Tensor | None
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) if mean else None, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) if std else None, persistent=False)

    def forward(self, x: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images classes"]:
        """Logits of the plain network."""
        return self.head(self.features(x))

    def features(self, x: Float[Tensor, "images channels height width"]) -> Float[Tensor, "images dim"]:
        """Pooled features of the plain network."""
        x = self._entry(x)
        for block in self.blocks():
            x = block(x)
        return x.mean(dim=(2, 3))

    def gated(
        self,
        x: Float[Tensor, "images channels height width"],
        *,
        uniforms: Float[Tensor, "images channels"] | None = None,
        threshold: float = 0.5,
    ) -> Gated:
        """A pass through the gates.

        Args:
            uniforms: numbers in [0, 1), one a gated channel: actions are drawn with them. None: a channel is
                kept where its probability is at least `threshold`.
        """
        x = self._entry(x)
        records: list[_Record] = []
        draws = _Cutter(uniforms)
        for block in self.blocks():
            x = block.gated(x, draws, threshold, records)
        actions, policies, log_probs = zip(*records)
        return Gated(
            self.head(x.mean(dim=(2, 3))),
            torch.cat(actions, dim=1),
            torch.cat(policies, dim=1),
            torch.stack(log_probs, dim=1),
        )

    def blocks(self) -> list[Block]:
        """All blocks in order."""
        return [block for stage in self.stage_names for block in self.get_submodule(stage).children()]  # type: ignore[misc]

    def gates(self) -> dict[str, Gate]:
        """Gates by name, in network order."""
        return {name: module for name, module in self.named_modules() if isinstance(module, Gate)}

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Gate j owns the columns from boundaries[j] to boundaries[j + 1] of actions and policy logits."""
        edges = [0]
        for gate in self.gates().values():
            edges.append(edges[-1] + gate.channels)
        return tuple(edges)

    def set_pooling(self, pooling: Pooling) -> None:
        """How all gates pool in training."""
        for gate in self.gates().values():
            gate.pooling = pooling

    def prepare(self, x: Tensor) -> Tensor:
        """Repeat a single channel and normalize."""
        if x.ndim != 4 or x.shape[1] not in (1, self.channels):
            raise DataError(
                f"images of shape {tuple(x.shape[1:])}",
                where="resnet",
                expected=f"[{self.channels}, height, width] or [1, height, width]",
            )
        x = x.expand(-1, self.channels, -1, -1)
        return x if self.mean is None or self.std is None else (x - self.mean) / self.std

    def _entry(self, x: Tensor) -> Tensor:
        x = self.prepare(x)
        if self.training:
            self._require_two_values(x)
        return torch.relu_(self.stem(x))

    def _require_two_values(self, x: Tensor) -> None:
        """Batch norm has no variance over a single value: one image whose map has shrunk to one pixel."""
        shrunk = 2 ** max(len(self.stage_names) - 1, 0)
        if len(x) == 1 and max(x.shape[2:]) <= shrunk:
            raise TrainingError(
                f"a training batch of one image of {x.shape[2]} x {x.shape[3]} pixels leaves batch norm a single value",
                where="resnet",
                expected=f"two images in every batch, or images of more than {shrunk} pixels",
                todo="Choose a batch_size that leaves no single image over at the end, enlarge the images, "
                "or take fewer stages.",
            )


_Record = tuple[Tensor, Tensor, Tensor]


class _Cutter:
    """Hands out the columns of `uniforms` gate by gate."""

    def __init__(self, uniforms: Tensor | None) -> None:
        self.rest = uniforms

    def take(self, n: int) -> Tensor | None:
        if self.rest is None:
            return None
        part, self.rest = self.rest[:, :n], self.rest[:, n:]
        return part


class ConvBn(nn.Module):
    """Convolution without bias, padded to keep the size at stride 1, and batch norm."""

    def __init__(self, inputs: int, channels: int, size: int, *, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, size, stride=stride, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        # oneDNN 3.12 (torch 2.14, CPUs of AVX2) writes past its buffers in the weight gradient of such a convolution
        # where a pixel's channels are neighbors in memory.
        self.own_layout = size == 1 and stride > 1 and inputs < 8

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x.contiguous() if self.own_layout else x))


class Block(nn.Module):
    """Basic block. A gate sits before each gated convolution and acts after its batch norm.

    ``h = relu(bn1(conv1 x) a1)``; ``out = relu((bn2(conv2 h) + shortcut x) a2)``: the shortcut is gated too,
    so that a channel that is switched off is exactly 0.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        *,
        stride: int,
        gated: tuple[bool, bool] = (False, False),
        hidden_ratio: int = 16,
        temperature: float = 0.15,
    ) -> None:
        super().__init__()
        self.stride = stride
        first, second = gated
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride=stride, padding=1, bias=False)
        if first:
            self.gate1 = Gate(inputs, channels, ratio=hidden_ratio, temperature=temperature)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        if second:
            self.gate2 = Gate(channels, channels, ratio=hidden_ratio, temperature=temperature)
        self.bn2 = nn.BatchNorm2d(channels)
        changes = stride != 1 or inputs != channels
        self.shortcut = ConvBn(inputs, channels, 1, stride=stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The plain block."""
        h = torch.relu_(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(h))
        out += self.shortcut(x)
        return torch.relu_(out)

    def gated(self, x: Tensor, draws: _Cutter, threshold: float, records: list[_Record]) -> Tensor:
        """The block with its gates; appends (actions, policy logits, log-probability) of each to `records`."""
        first = self._act("gate1", x, draws, threshold, records)
        h = self.bn1(self.conv1(x))
        h = torch.relu_(h if first is None else h * first)
        second = self._act("gate2", h, draws, threshold, records)
        out = self.bn2(self.conv2(h))
        out += self.shortcut(x)
        return torch.relu_(out if second is None else out * second)

    def _act(self, name: str, x: Tensor, draws: _Cutter, threshold: float, records: list[_Record]) -> Tensor | None:
        gate: Gate | None = getattr(self, name, None)
        if gate is None:
            return None
        policy = gate(x)
        probabilities = gate.probabilities(policy)
        uniforms = draws.take(gate.channels)
        if uniforms is None:
            actions = threshold_actions(probabilities, threshold)
        else:
            actions = sampled_actions(probabilities, uniforms)
        records.append((actions, policy, log_probability(policy, actions, gate.temperature)))
        return actions[:, :, None, None]
