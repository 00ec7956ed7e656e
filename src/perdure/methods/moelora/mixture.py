"""A linear layer with a dense mixture of low-rank experts: every token weighs all of them by a softmax.

Knows one layer (MoELoRA as in CoIN, arXiv 2403.08350, no load balancing). Does not know models or tasks.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class MixtureLinear(nn.Module):
    """``y = W x + scale sum_e g_e(x) B_e A_e drop_e(x)`` around a frozen layer.

    Args:
        base: the frozen layer.
        experts: their number E.
        rank: of all experts together; each has rank / E.
        alpha: ``scale = alpha / rank``.
        dropout: of each expert's input, drawn for each expert apart.
    """

    def __init__(self, base: nn.Linear, *, experts: int, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.base_layer, self.experts, self.scale, self.dropout = base, experts, alpha / rank, dropout
        like = {"device": base.weight.device, "dtype": torch.float32}
        self.router = nn.Parameter(torch.zeros(experts, base.in_features, **like))
        self.a = nn.Parameter(torch.zeros(rank, base.in_features, **like))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, **like))

    def forward(self, x: Float[Tensor, "*tokens inputs"]) -> Float[Tensor, "*tokens outputs"]:
        y = self.base_layer(x)
        x = x.to(self.a.dtype)
        gates = F.linear(x, self.router).float().softmax(-1).to(x.dtype)
        low = self._low(x)
        low = low * gates.repeat_interleave(low.shape[-1] // self.experts, dim=-1)
        return y + (self.scale * F.linear(low, self.b)).to(y.dtype)

    def _low(self, x: Tensor) -> Tensor:
        """``A_e drop_e(x)`` of all experts, side by side."""
        if not (self.training and self.dropout):
            return F.linear(x, self.a)
        parts = [F.linear(F.dropout(x, self.dropout), a) for a in self.a.chunk(self.experts)]
        return torch.cat(parts, dim=-1)
