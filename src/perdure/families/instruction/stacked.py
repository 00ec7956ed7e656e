"""Updates of earlier tasks kept as factors beside a frozen layer, instead of being added to its weight.

A weight in bfloat16 has 8 significant bits, in NF4 16 values: an update that is added to it after each task is lost in
part, a small one wholly. Stacked factors lose nothing: ``y = W x + B A x`` with all tasks' A below, and all tasks' B
beside each other.

Knows one layer at a time. Does not know models or tasks.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

A, B = "past_a", "past_b"


def prepare(layer: nn.Module, *, inputs: int, outputs: int, device: torch.device) -> None:
    """Let a linear layer add what is stacked beside it: nothing, so far."""
    layer.register_buffer(A, torch.zeros(0, inputs, device=device), persistent=False)
    layer.register_buffer(B, torch.zeros(outputs, 0, device=device), persistent=False)
    layer.register_forward_hook(_add)


@torch.no_grad()
def append(layer: nn.Module, a: Float[Tensor, "rank inputs"], b: Float[Tensor, "outputs rank"]) -> None:
    """One more update ``b a``, its scale in b; float32.

    Where the ranks together pass those of the matrix, the sum of all is kept instead, in as many rows as it has.
    """
    below, beside = factors(layer)
    below, beside = torch.cat([below, a.detach().float()]), torch.cat([beside, b.detach().float()], dim=1)
    if len(below) > min(len(beside), below.shape[1]):
        whole = beside @ below
        wide = len(beside) <= below.shape[1]
        unit = torch.eye(min(whole.shape), device=whole.device)
        below, beside = (whole, unit) if wide else (unit, whole)
    put(layer, below, beside)


def factors(layer: nn.Module) -> tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]:
    """(A, B) of all updates."""
    return getattr(layer, A), getattr(layer, B)


def put(layer: nn.Module, a: Tensor, b: Tensor) -> None:
    """What `factors` gave, on the layer's device."""
    device = getattr(layer, A).device
    setattr(layer, A, a.to(device).contiguous())
    setattr(layer, B, b.to(device).contiguous())


def _add(layer: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor:
    a, b = factors(layer)
    return out + F.linear(F.linear(given[0].to(a.dtype), a), b).to(out.dtype) if len(a) else out
