"""Gradients as one vector: taking them, projecting them, handing them to an optimizer.

Knows losses and parameters. Does not know networks or memories.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def gradient(loss: Tensor, parameters: Sequence[Tensor]) -> Float[Tensor, " parameters"]:
    """The gradient over all parameters in order, as one vector; zero where the loss does not depend on one."""
    parts = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(parts, parameters)])


def assign(gradient: Float[Tensor, " values"], parameters: Sequence[Tensor]) -> None:
    """Make it the parameters' ``grad``, for an optimizer's step."""
    for part, parameter in zip(gradient.split([p.numel() for p in parameters]), parameters):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)


def vector(tensors: Sequence[Tensor]) -> Float[Tensor, " values"]:
    """A detached copy of all values in order, as one vector."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def without_conflict(g: Float[Tensor, " values"], reference: Float[Tensor, " values"]) -> Float[Tensor, " values"]:
    """A-GEM: `g` as it is where it does not raise the reference's loss, else without its part along it.

    ``g - (g.r / r.r) r`` if ``g.r < 0`` (Chaudhry et al. 2019).
    """
    dot = g @ reference
    projected = g - dot / (reference @ reference).clamp(min=torch.finfo(g.dtype).tiny) * reference
    return torch.where(dot < 0, projected, g)
