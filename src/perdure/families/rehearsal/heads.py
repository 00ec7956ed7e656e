"""A head that grows: outputs for classes that come after the network was made.

Knows networks whose last layer is a linear one called ``head``, and how many outputs a state has. Does not know losses
or memories. New rows are drawn by (seed, task), so that a stream in one go and in several gives the same network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.runtime import Runtime

WEIGHT, BIAS = "head.weight", "head.bias"


@torch.no_grad()
def grow(net: nn.Module, classes: int, runtime: Runtime) -> None:
    """Outputs for at least so many classes; those that are there stay as they are.

    New rows are drawn as torch draws a linear layer: evenly between plus and minus ``1 / sqrt(inputs)``.
    """
    head = cast(nn.Linear, net.get_submodule("head"))
    more = classes - head.out_features
    if more <= 0:
        return
    bound = 1 / math.sqrt(head.in_features)
    drawn = torch.rand(more, head.in_features + 1, generator=runtime.generator("head")) * 2 * bound - bound
    _enlarge(net, drawn[:, :-1], drawn[:, -1])


@torch.no_grad()
def load(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """A state whose head may have more outputs than the network, which grows to it."""
    weight, head = state.get(WEIGHT), getattr(net, "head", None)
    if weight is not None and isinstance(head, nn.Linear) and len(weight) > head.out_features:
        more = slice(head.out_features, None)
        _enlarge(net, weight[more], state[BIAS][more])
    net.load_state_dict(state)


def squared_error(outputs: Tensor, stored: Tensor) -> Tensor:
    """Mean squared error to stored logits. Those from before a head grew have minus infinity in its new columns, which
    count nowhere."""
    stored = stored.to(outputs)
    known = ~stored.isneginf()
    error = F.mse_loss(outputs, torch.where(known, stored, outputs.detach()))
    return error * (known.numel() / known.sum())  # times 1 where all are known; nobody waits for the device


def _enlarge(net: nn.Module, weight: Tensor, bias: Tensor) -> None:
    head = cast(nn.Linear, net.get_submodule("head"))
    for name, rows in (("weight", weight), ("bias", bias)):
        old = getattr(head, name)
        grown = torch.cat([old.data, rows.to(old)])
        setattr(head, name, nn.Parameter(grown, requires_grad=old.requires_grad))
    head.out_features += len(weight)
    cast(Any, net).classes = head.out_features
