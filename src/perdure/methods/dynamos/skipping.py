"""A trained gated network, run so that channels that are switched off are hardly computed, or in the fastest way.

Knows how to fold batch norm into convolutions, how to convolve each image with its own channels, and which of several
passes is the fastest. Does not know how gates are trained. Results equal the masked network's up to rounding.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.layers.gates import Gate, log_probability, threshold_actions
from perdure.layers.resnet import Block, ConvBn, Gated, ResNet

LANES = 16
"""Channels that a convolution of a CPU computes at once: 45 channels take as long as 48."""
WORTH = 5e7
"""Multiply-accumulates that must be saved for images to be convolved with their own channels: taking weights and
channels apart costs about as much (20 images of 16 x 16 pixels that keep 45 of 64 channels)."""

AGREE = 1e-4
"""Largest difference of logits, as a share of the largest logit, at which two passes count as the same."""

Path = Literal["folded", "skipping", "dense"]
"""How a gated network is computed: with batch norm folded into convolutions; so, without channels that are off where
that saves more than it costs; as in training, then masked."""
PATHS: tuple[Path, ...] = get_args(Path)
Pass = Callable[[Tensor], Gated]


def gated_pass(net: ResNet, path: Path, *, threshold: float = 0.5) -> Pass:
    """The network's pass through its gates in evaluation, by this path; `dense` alone sees later changes of weights."""
    if path == "dense":
        return partial(net.gated, threshold=threshold)
    return Skipping(net, threshold=threshold, worth=WORTH if path == "skipping" else float("inf"))


@torch.no_grad()
def fastest(
    passes: Mapping[Path, Pass],
    x: Float[Tensor, "images channels height width"],
    *,
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Path, dict[str, float]]:
    """Which pass takes the least time, and the seconds of each: the least of some rounds, taken in turn.

    One whose logits differ from those of `dense` by more than `AGREE` is not chosen.
    """
    expected = passes["dense"](x).logits
    allowed = AGREE * expected.abs().max()
    seconds: dict[str, float] = {}
    apart = {name: (run(x).logits - expected).abs().max() > allowed for name, run in passes.items()}  # warms up, too
    for _ in range(rounds):
        for name, run in passes.items():
            began = clock()
            run(x).logits[0, 0].item()  # waits for a GPU
            seconds[name] = min(seconds.get(name, float("inf")), clock() - began)
    return min((name for name in passes if not apart[name]), key=lambda name: seconds[name]), seconds


class Skipping:
    """The network at one moment: a later change of its weights is not seen.

    Args:
        threshold: least keep probability of a kept channel.
        lanes: kept channels are filled up to a multiple of this (with zeros).
        worth: see `WORTH`; 0: whatever saves anything, infinity: nothing is taken apart.
    """

    def __init__(self, net: ResNet, *, threshold: float = 0.5, lanes: int = LANES, worth: float = WORTH) -> None:
        self.net, self.threshold, self.lanes, self.worth = net, threshold, lanes, worth
        self.stem = _fold(net.stem.conv, net.stem.bn)
        self.blocks = [_folded(block) for block in net.blocks()]
        self.head = net.head

    @torch.inference_mode()
    def __call__(self, x: Float[Tensor, "images channels height width"]) -> Gated:
        """As `ResNet.gated` in evaluation mode with this threshold."""
        x = torch.relu_(_convolve(self.net.prepare(x), self.stem))
        records: list[tuple[Tensor, Tensor, Tensor]] = []
        on: Tensor | None = None
        for block in self.blocks:
            middle = self._act(block.gate1, x, records)
            h = torch.relu_(self._sparse(x, block.conv1, on, middle))
            after = self._act(block.gate2, h, records)
            out = self._sparse(h, block.conv2, middle, after)
            out += x if block.shortcut is None else _convolve(x, block.shortcut)
            if after is not None:
                out *= after[:, :, None, None]
            x, on = torch.relu_(out), after
        actions, policies, log_probs = zip(*records)
        logits = self.head(x.mean(dim=(2, 3)))
        return Gated(logits, torch.cat(actions, 1), torch.cat(policies, 1), torch.stack(log_probs, 1))

    def _act(self, gate: _Gate | None, x: Tensor, records: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor | None:
        if gate is None:
            return None
        policy = gate.policy(x)
        actions = threshold_actions(torch.sigmoid(policy / gate.temperature), self.threshold)
        records.append((actions, policy, log_probability(policy, actions, gate.temperature)))
        return actions

    def _sparse(self, x: Tensor, conv: _Convolution, on: Tensor | None, kept: Tensor | None) -> Tensor:
        """The convolution with `kept` output channels ``[images, channels]`` and zeros in the others; `x` is zero
        in all channels but `on`. Images that need as many channels are done together."""
        outputs, inputs = conv.weight.shape[:2]
        if self.worth == float("inf"):  # nobody need count
            return _group(x, conv, on, kept, inputs, outputs)
        height, width = (-(-size // conv.stride) for size in x.shape[2:])
        sizes = list(zip(self._needed(on, len(x), inputs), self._needed(kept, len(x), outputs)))
        images = Counter(sizes)
        macs = conv.weight[0, 0].numel() * height * width
        saved = {(i, o): n * (inputs * outputs - i * o) * macs for (i, o), n in images.items()}
        sizes = [size if saved[size] >= self.worth else (inputs, outputs) for size in sizes]
        groups = sorted(set(sizes))
        if len(groups) == 1:
            return _group(x, conv, on, kept, *groups[0])
        result = x.new_empty(len(x), outputs, height, width)
        for group in groups:
            rows = torch.tensor([row for row, size in enumerate(sizes) if size == group])
            own_on, own_kept = (None if mask is None else mask[rows] for mask in (on, kept))
            result.index_copy_(0, rows, _group(x.index_select(0, rows), conv, own_on, own_kept, *group))
        return result

    def _needed(self, mask: Tensor | None, images: int, channels: int) -> list[int]:
        """Channels to compute for each image: those of its mask, filled up to whole lanes."""
        if mask is None:
            return [channels] * images
        return [min(-(-int(n) // self.lanes) * self.lanes, channels) for n in mask.sum(dim=1).tolist()]


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
    temperature: float

    def policy(self, x: Tensor) -> Tensor:
        z = F.linear(x.mean(dim=(2, 3)), self.weight, self.bias)
        return z * torch.sigmoid(self.fc2(torch.relu(self.fc1(z))))


class _Folded(NamedTuple):
    conv1: _Convolution
    conv2: _Convolution
    shortcut: _Convolution | None
    gate1: _Gate | None
    gate2: _Gate | None


def _group(x: Tensor, conv: _Convolution, on: Tensor | None, kept: Tensor | None, inputs: int, outputs: int) -> Tensor:
    """`Skipping._sparse` for images that all need so many input and output channels."""
    height, width = (-(-size // conv.stride) for size in x.shape[2:])
    if not inputs or not outputs:
        found = conv.bias[None, :, None, None].expand(len(x), -1, height, width)
        return found.clone() if kept is None else found * kept[:, :, None, None]
    if (inputs, outputs) == (conv.weight.shape[1], conv.weight.shape[0]):
        found = _convolve(x, conv)
        return found if kept is None else found.mul_(kept[:, :, None, None])
    given = None if on is None else _first(on, inputs)
    wanted = None if kept is None else _first(kept, outputs)
    if all(chosen is None or bool((chosen == chosen[0]).all()) for chosen in (given, wanted)):
        found = _together(x, conv, given, wanted)
    else:
        found = _apart(x, conv, given, wanted)
    if kept is None or wanted is None:
        return found
    found *= kept.gather(1, wanted)[:, :, None, None]
    result = x.new_zeros(len(x) * len(conv.bias), height * width)
    result.index_copy_(0, _places(wanted, len(conv.bias)), found.reshape(-1, height * width))
    return result.view(len(x), -1, height, width)


def _first(mask: Float[Tensor, "images channels"], count: int) -> Int[Tensor, "images count"]:
    """Numbers of the kept channels, filled up to `count` with others."""
    return mask.topk(count, dim=1, sorted=False).indices


def _places(chosen: Int[Tensor, "images count"], channels: int) -> Int[Tensor, " chosen"]:
    """Chosen channels as rows of a table with `channels` rows an image."""
    return (torch.arange(len(chosen))[:, None] * channels + chosen).flatten()


def _together(x: Tensor, conv: _Convolution, given: Tensor | None, wanted: Tensor | None) -> Tensor:
    """One convolution of all images, which have the same channels."""
    weight, bias = conv.weight, conv.bias
    if wanted is not None:
        weight, bias = weight[wanted[0]], bias[wanted[0]]
    if given is not None:
        x, weight = x[:, given[0]], weight[:, given[0]]
    return F.conv2d(x, weight, bias, conv.stride, conv.padding)


def _apart(x: Tensor, conv: _Convolution, given: Tensor | None, wanted: Tensor | None) -> Tensor:
    """Each image with its own channels: one convolution in as many groups as there are images.

    By hand: 2 images, 3 input channels of which image 0 has (0, 2) and image 1 (1, 2) on, and 4 outputs of which they
    keep (1, 3) and (0, 1). Of the 4 x 3 kernels image 0 takes rows 1 and 3 by columns 0 and 2, image 1 rows 0 and 1 by
    columns 1 and 2: 8 kernels for 4 output maps, in place of 24 for 8.
    """
    images, channels = x.shape[:2]
    outputs = len(conv.bias)
    # 1) the channels that are on and wanted, all of them where there is no mask
    if given is None:
        given = torch.arange(channels).expand(images, -1)
    if wanted is None:
        wanted = torch.arange(outputs).expand(images, -1)
    # 2) each image's kernels, by (output, input)
    pairs = wanted[:, :, None] * channels + given[:, None, :]
    kernels = conv.weight.reshape(outputs * channels, -1).index_select(0, pairs.flatten())
    weight = kernels.view(-1, given.shape[1], *conv.weight.shape[2:])
    # 3) each image's maps that are on, side by side as the channels of one image
    rows = x.contiguous().view(images * channels, -1).index_select(0, _places(given, channels))
    taken = rows.view(1, -1, *x.shape[2:])
    # 4) one convolution: group i sees the maps and kernels of image i alone
    bias = conv.bias[wanted].flatten()
    out = F.conv2d(taken, weight, bias, conv.stride, conv.padding, groups=images)
    return out.view(images, -1, *out.shape[2:])


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
    return _Gate(folded.weight.flatten(1), folded.bias, gate.fc1, gate.fc2, gate.temperature)


def _convolve(x: Tensor, conv: _Convolution) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
