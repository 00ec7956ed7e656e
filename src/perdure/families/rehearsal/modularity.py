"""What the gates of a network do: channels kept, work saved, and how classes share channels.

Knows actions (1: kept) and labels. Does not know how they were made. Numbers only; figures are the report's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.layers.resnet import ConvBn, ResNet


@torch.no_grad()
def measure(
    net: ResNet, images: Float[Tensor, "images ch height width"], labels: Tensor, *, threshold: float
) -> dict[str, Any]:
    """`summary` of what the gates do with network inputs; empty without gates. Leaves the network in evaluation."""
    if not net.gates():
        return {}
    net.eval()
    actions = torch.cat([net.gated(x, threshold=threshold).actions for x in images.split(128)])
    return summary(net, images, actions, labels.to(actions.device))


def summary(
    net: ResNet,
    images: Float[Tensor, "images ch height width"],
    actions: Float[Tensor, "images channels"],
    labels: Tensor,
) -> dict[str, Any]:
    """All of this module over some images, JSON-ready; tables have a row (and column) for each of `classes`.

    `overlap_with_similarity` correlates the overlap of channels with the cosine of the classes' mean images,
    taken about the mean of all.
    """
    classes, activity = by_class(actions, labels)
    _, ratios = by_class(keep_ratios(actions, net.boundaries), labels)
    _, means = by_class(images.flatten(1), labels)
    height, width = images.shape[2:]
    work = multiply_accumulates(net, actions, height=height, width=width)
    whole = multiply_accumulates(net, torch.ones_like(actions[:1]), height=height, width=width, gates="none")
    shared = overlap(activity)
    return {
        "images": len(labels),
        "gates": list(net.gates()),
        "classes": classes.tolist(),
        "keep_ratio": _rounded(keep_ratios(actions, net.boundaries).mean(dim=0)),
        "keep_ratio_of_class": _rounded(ratios),
        "multiply_accumulates": float(work.mean()),
        "multiply_accumulates_plain": float(whole),
        "overlap": _rounded(shared),
        "overlap_with_similarity": correlation(shared, cosine(means - means.mean(dim=0))),
        **usage(actions),
    }


def keep_ratios(actions: Float[Tensor, "images channels"], boundaries: Sequence[int]) -> Float[Tensor, "images gates"]:
    """Share of channels that each gate keeps for each image."""
    return torch.stack([actions[:, i:j].mean(dim=1) for i, j in pairwise(boundaries)], dim=1)


def multiply_accumulates(
    net: ResNet, actions: Float[Tensor, "images channels"], *, height: int, width: int, gates: str = "pooled"
) -> Float[Tensor, " images"]:
    """Multiply-accumulates of a forward pass for each image, with channels that are off skipped.

    Args:
        height, width: of the images.
        gates: what the gates cost: `pooled` (1x1 convolution after pooling), `map` (at full resolution, as in
            training by the published code), `none`.
    """
    assert gates in ("pooled", "map", "none")
    parts = iter([actions[:, i:j] for i, j in pairwise(net.boundaries)])
    everything = torch.ones(len(actions), dtype=torch.float64, device=actions.device)
    total = everything * (27 if net.channels == 3 else 9 * net.channels) * net.stem.conv.out_channels * height * width
    inputs = everything * net.stem.conv.out_channels
    for block in net.blocks():
        before = (height, width)
        height, width = -(-height // block.stride), -(-width // block.stride)
        middle, outputs = (everything * conv.out_channels for conv in (block.conv1, block.conv2))
        if hasattr(block, "gate1"):
            total = total + _gate_cost(block.gate1, inputs, before, gates)
            middle = next(parts).sum(dim=1).double()
        if hasattr(block, "gate2"):
            total = total + _gate_cost(block.gate2, middle, (height, width), gates)
            outputs = next(parts).sum(dim=1).double()
        total = total + 9 * height * width * (inputs * middle + middle * outputs)
        if isinstance(block.shortcut, ConvBn):
            total = total + height * width * inputs * outputs
        inputs = outputs
    return total + inputs * net.classes


def _rounded(values: Tensor) -> list:
    return [[round(x, 4) for x in row] if isinstance(row, list) else round(row, 4) for row in values.tolist()]


def _gate_cost(gate, inputs: Tensor, size: tuple[int, int], gates: str) -> Tensor | float:
    if gates == "none":
        return 0.0
    layers = 2 * gate.channels * gate.fc1.out_features
    if gates == "map":
        return gate.pw.in_channels * gate.channels * size[0] * size[1] + layers
    return inputs * gate.channels + layers


def by_class(
    values: Float[Tensor, "images columns"], labels: Int[Tensor, " images"]
) -> tuple[Int[Tensor, " classes"], Float[Tensor, "classes columns"]]:
    """Labels that occur, ascending, and the mean of their images' values."""
    classes = labels.unique()
    return classes, torch.stack([values[labels == label].mean(dim=0) for label in classes])


def overlap(activity: Float[Tensor, "classes channels"], threshold: float = 0.5) -> Float[Tensor, "classes classes"]:
    """Jaccard index of the channels that two classes use: active for more than `threshold` of their images.

    1 for two classes that use none.
    """
    used = (activity > threshold).double()
    both = used @ used.T
    either = used.sum(dim=1)[:, None] + used.sum(dim=1)[None, :] - both
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(both))


def cosine(vectors: Float[Tensor, "classes dim"]) -> Float[Tensor, "classes classes"]:
    """Cosine of each pair of rows."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    return unit @ unit.T


def correlation(a: Float[Tensor, "classes classes"], b: Float[Tensor, "classes classes"]) -> float | None:
    """Pearson's correlation of two symmetric tables over pairs of different classes; None where undefined."""
    rows, columns = torch.triu_indices(len(a), len(a), offset=1)
    pairs = torch.stack([a[rows, columns].double(), b[rows, columns].double()])
    if pairs.shape[1] < 2 or bool((pairs.std(dim=1) == 0).any()):
        return None
    return float(torch.corrcoef(pairs)[0, 1])


def usage(actions: Float[Tensor, "images channels"]) -> Mapping[str, list[int]]:
    """Channels that were on for no image (`dead`) and for every image (`always_on`)."""
    share = actions.mean(dim=0)
    return {
        "dead": (share == 0).nonzero()[:, 0].tolist(),
        "always_on": (share == 1).nonzero()[:, 0].tolist(),
    }
