"""Fusion of an adapter's weights before and after a task, in the old adapter's singular basis.

Knows two matrices. Does not know models or tasks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def fuse_adapters(
    old: Float[Tensor, "out in"], new: Float[Tensor, "out in"], *, mix_bias: float
) -> Float[Tensor, "out in"]:
    """Entries that the task moved much take their new value, the others keep more of the old one.

    With ``old = U S V^T``: ``P = U^T new``, ``R = |P - S V^T|``, ``M = min(R / max R + mix_bias, 1)`` and
    ``fused = U (P M + S V^T (1 - M))`` (elementwise products). The result does not depend on the signs
    of the singular vectors. If nothing moved, it is `new` itself.
    """
    if torch.equal(old, new):
        return new.clone()
    left, singular, right = torch.linalg.svd(old, full_matrices=False)
    before = singular[:, None] * right
    after = left.T @ new
    moved = (after - before).abs()
    mask = (moved / moved.max().clamp(min=torch.finfo(moved.dtype).tiny) + mix_bias).clamp(max=1)
    return left @ (after * mask + before * (1 - mask))
