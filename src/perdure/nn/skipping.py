"""A trained gated network, run so that channels that are switched off are never computed.

Knows how to fold batch norm into convolutions, and how to take rows and columns of a convolution by a mask.
Does not know how gates are trained. The result equals the masked network's up to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.nn.gates import Gate, log_probability, threshold_actions
from perdure.nn.resnet import Block, ConvBn, Gated, ResNet


class Skipping:
    """The network at one moment: a later change of its weights is not seen.

    Args:
        threshold: least keep probability of a kept channel.
        share: images that must share a mask on average for them to be computed apart, without the channels
            that are off. Taking weights apart for an image costs more than a batch of masked images saves.
    """

    def __init__(self, net: ResNet, *, threshold: float = 0.5, share: float = 4.0) -> None:
        self.net, self.threshold, self.share = net, threshold, share
        self.stem = _fold(net.stem.conv, net.stem.bn)
        self.blocks = [_folded(block) for block in net.blocks()]
        self.head = net.head

    @torch.inference_mode()
    def __call__(self, x: Float[Tensor, "images channels height width"]) -> Gated:
        """As `ResNet.gated` in evaluation mode with this threshold."""
        x = torch.relu(_convolve(self.net.prepare(x), self.stem))
        records = [
            tuple(x.new_zeros(len(x), *size) for size in ((gate.channels,), (gate.channels,), ()))
            for block in self.blocks
            for gate in (block.gate1, block.gate2)
            if gate is not None
        ]
        logits = x.new_zeros(len(x), self.head.out_features)
        self._go(0, 0, x, None, torch.arange(len(x), device=x.device), records, logits)
        actions, policies, log_probs = zip(*records)
        return Gated(logits, torch.cat(actions, 1), torch.cat(policies, 1), torch.stack(log_probs, 1))

    def _go(
        self,
        place: int,
        gates: int,
        x: Tensor,
        on: Tensor | None,
        rows: Tensor,
        records: list[tuple[Tensor, ...]],
        logits: Tensor,
    ) -> None:
        """Run the blocks from `place` on for the images `rows`, whose input `x` has the channels `on` only.

        Images split into groups where their masks differ; None stands for all channels.
        """
        if place == len(self.blocks):
            weight = self.head.weight if on is None else self.head.weight[:, on]
            logits[rows] = F.linear(x.mean(dim=(2, 3)), weight, self.head.bias)
            return
        block = self.blocks[place]
        for own, first, mask in self._groups(block.gate1, gates, x, on, rows, records):
            part = x if own is None else x[own]
            numbers = rows if own is None else rows[own]
            h = _masked_relu(_convolve(part, block.conv1, on, first), mask)
            second_gate = gates + (block.gate1 is not None)
            for inner, second, mask in self._groups(block.gate2, second_gate, h, first, numbers, records):
                deep = h if inner is None else h[inner]
                entry = part if inner is None else part[inner]
                out = _convolve(deep, block.conv2, first, second)
                if block.shortcut is not None:
                    out += _convolve(entry, block.shortcut, on, second)
                else:
                    _add_common(out, entry, on, second)
                after = second_gate + (block.gate2 is not None)
                self._go(
                    place + 1,
                    after,
                    _masked_relu(out, mask),
                    second,
                    numbers if inner is None else numbers[inner],
                    records,
                    logits,
                )

    def _groups(
        self,
        gate: _Gate | None,
        number: int,
        x: Tensor,
        on: Tensor | None,
        rows: Tensor,
        records: list[tuple[Tensor, ...]],
    ) -> list[tuple[Tensor | None, Tensor | None, Tensor | None]]:
        """(places of the images, kept channels, mask) for each group that is computed together.

        A group has one mask and is computed without the channels that are off; where few images share a mask,
        all are computed whole, with a mask for each.
        """
        if gate is None:
            return [(None, None, None)]
        policy = gate.policy(x, on)
        actions = threshold_actions(torch.sigmoid(policy / gate.temperature), self.threshold)
        values = (actions, policy, log_probability(policy, actions, gate.temperature))
        for record, value in zip(records[number], values):
            record[rows] = value
        if len(x) == 1:
            return [(None, _kept(actions[0]), None)]
        masks, of = actions.unique(dim=0, return_inverse=True)
        if len(masks) == 1:
            return [(None, _kept(masks[0]), None)]
        if len(x) < self.share * len(masks):
            return [(None, None, actions[:, :, None, None])]
        return [((of == i).nonzero()[:, 0], _kept(mask), None) for i, mask in enumerate(masks)]


class _Convolution(NamedTuple):
    weight: Tensor
    bias: Tensor
    stride: int
    padding: int


class _Gate(NamedTuple):
    """``z = weight mean(x) + bias`` with batch norm folded in, then the gate's own layers."""

    weight: Tensor
    bias: Tensor
    fc1: nn.Linear
    fc2: nn.Linear
    channels: int
    temperature: float

    def policy(self, x: Tensor, on: Tensor | None) -> Tensor:
        weight = self.weight if on is None else self.weight[:, on]
        z = F.linear(x.mean(dim=(2, 3)), weight, self.bias)
        return z * torch.sigmoid(self.fc2(torch.relu(self.fc1(z))))


class _Folded(NamedTuple):
    conv1: _Convolution
    conv2: _Convolution
    shortcut: _Convolution | None
    gate1: _Gate | None
    gate2: _Gate | None


def _folded(block: Block) -> _Folded:
    entry = block.shortcut
    shortcut = _fold(entry.conv, entry.bn) if isinstance(entry, ConvBn) else None
    gates = [getattr(block, name, None) for name in ("gate1", "gate2")]
    return _Folded(
        _fold(block.conv1, block.bn1),
        _fold(block.conv2, block.bn2),
        shortcut,
        *(None if gate is None else _fold_gate(gate) for gate in gates),
    )


@torch.no_grad()
def _fold(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> _Convolution:
    """Convolution and evaluation batch norm as one convolution with bias."""
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    weight = conv.weight * scale[:, None, None, None]
    return _Convolution(weight, bn.bias - bn.running_mean * scale, conv.stride[0], int(conv.padding[0]))


def _fold_gate(gate: Gate) -> _Gate:
    folded = _fold(gate.pw, gate.bn)
    return _Gate(folded.weight.flatten(1), folded.bias, gate.fc1, gate.fc2, gate.channels, gate.temperature)


def _masked_relu(x: Tensor, mask: Tensor | None) -> Tensor:
    return torch.relu_(x if mask is None else x.mul_(mask))


def _kept(mask: Tensor) -> Tensor | None:
    """Indices of kept channels; None for all."""
    kept = mask.nonzero()[:, 0]
    return None if len(kept) == len(mask) else kept


def _convolve(x: Tensor, conv: _Convolution, on: Tensor | None = None, kept: Tensor | None = None) -> Tensor:
    """The `kept` output channels; `x` has the input channels `on`."""
    weight, bias = conv.weight, conv.bias
    if kept is not None:
        weight, bias = weight[kept], bias[kept]
    if on is not None:
        weight = weight[:, on]
    if 0 in weight.shape[:2]:  # nothing comes in or nothing goes out
        height, width = (-(-size // conv.stride) for size in x.shape[2:])
        return bias[None, :, None, None].expand(len(x), -1, height, width).clone()
    return F.conv2d(x, weight, bias, conv.stride, conv.padding)


def _add_common(out: Tensor, x: Tensor, on: Tensor | None, kept: Tensor | None) -> None:
    """Add the channels of `x` (numbers `on`) to those of `out` (numbers `kept`) with the same number."""
    if on is None and kept is None:
        out += x
    elif on is None:
        out += x[:, kept]
    elif kept is None:
        out[:, on] += x
    else:
        same = (kept[:, None] == on[None, :]).nonzero()
        out.index_add_(1, same[:, 0], x[:, same[:, 1]])
