"""Losses in float16 are scaled before the backward pass, and their gradients unscaled before a step.

Knows autocast's type and gradients. Does not know episodes. A scale that does not move keeps an episode independent of
those before it; bfloat16 has the range of float32 and needs none.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOSS_SCALE = 1024.0
"""Of losses in float16 (published code: 1000, and what overflows of one sample lowers it for those after)."""


def loss_scale(device: torch.device) -> float:
    """What a loss is multiplied with before its backward pass: more than 1 within an autocast to float16."""
    half = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16
    return LOSS_SCALE if half else 1.0


@torch.no_grad()
def unscale(gradients: list[Tensor], scale: float, *, stacked: bool) -> None:
    """Divide gradients by the scale, in place; all of a sample are zero where one has overflowed.

    Args:
        stacked: the first axis is one of samples.
    """
    torch._foreach_mul_(gradients, 1 / scale)
    flat = [g.reshape(len(g) if stacked else 1, -1) for g in gradients]
    finite = torch.stack([g.isfinite().all(1) for g in flat]).all(0)
    for gradient in gradients:
        gradient.copy_(gradient.where(finite.view(-1, *[1] * (gradient.ndim - 1)) if stacked else finite[0], 0.0))
