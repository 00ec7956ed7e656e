"""Low-rank updates of a matrix: fresh factors, and merging them into the weight.

Knows ``y = x W^T + scale (x A^T) B^T`` for one matrix (Hu et al. 2022). Does not know models or optimisers.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def fresh_a(normal: Float[Tensor, "rank inputs"]) -> Float[Tensor, "rank inputs"]:
    """The usual start of A, uniform in ``+-1 / sqrt(inputs)`` (Kaiming with a = sqrt 5), made of Gaussian noise.

    The noise goes through its distribution function, so that one keyed source serves all draws.
    """
    bound = 1 / math.sqrt(normal.shape[1])
    return bound * torch.erf(normal / math.sqrt(2))


@torch.no_grad()
def merged(
    weight: Float[Tensor, "outputs inputs"],
    lora_a: Float[Tensor, "rank inputs"],
    lora_b: Float[Tensor, "outputs rank"],
    *,
    scale: float,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "outputs inputs"]:
    """``W + scale B A`` summed in `dtype` and given back in the weight's type.

    With float16 the factors, the product and the sum are each rounded to float16, as the published script does:
    updates below half a unit in W's last place are lost.
    """
    wide = torch.promote_types(dtype, torch.float32)
    product = lora_b.to(dtype).to(wide) @ lora_a.to(dtype).to(wide) * scale
    return (weight.to(dtype) + product.to(dtype)).to(weight.dtype)
