"""From one CLIP feature to the word vectors that a frozen language model goes on from.

Knows features ``[images, dim]`` and prefixes ``[images, prefix, width]``. Does not know CLIP, language models or
losses. ClipCap (Mokady et al. 2021), CapDec (Nukrai et al. 2022); parameters have their names.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

MapperKind = Literal["mlp", "transformer"]


def make_mapper(
    kind: MapperKind, *, dim: int, width: int, prefix: int, clip_prefix: int, layers: int = 8, heads: int = 8
) -> nn.Module:
    """A mapper with fresh weights.

    Args:
        dim: of features; `width`: of the language model's word vectors.
        prefix: vectors that come out; `clip_prefix`: vectors that the feature becomes inside the transformer.
    """
    if kind == "mlp":
        return MlpMapper(dim=dim, width=width, prefix=prefix)
    return TransformerMapper(dim=dim, width=width, prefix=prefix, clip_prefix=clip_prefix, layers=layers, heads=heads)


class MlpMapper(nn.Module):
    """``Linear - tanh - Linear``, half as wide inside as outside."""

    def __init__(self, *, dim: int, width: int, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        out = prefix * width
        self.model = nn.Sequential(nn.Linear(dim, out // 2), nn.Tanh(), nn.Linear(out // 2, out))

    def forward(self, features: Float[Tensor, "images dim"]) -> Float[Tensor, "images prefix width"]:
        return self.model(features).view(len(features), self.prefix, -1)


class TransformerMapper(nn.Module):
    """The feature as `clip_prefix` vectors beside `prefix` learnt ones; the answer is where the latter end up."""

    def __init__(self, *, dim: int, width: int, prefix: int, clip_prefix: int, layers: int, heads: int) -> None:
        super().__init__()
        self.prefix, self.clip_prefix = prefix, clip_prefix
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.linear = nn.Linear(dim, clip_prefix * width)
        self.prefix_const = nn.Parameter(torch.randn(prefix, width))

    def forward(self, features: Float[Tensor, "images dim"]) -> Float[Tensor, "images prefix width"]:
        seen = self.linear(features).view(len(features), self.clip_prefix, -1)
        x = torch.cat([seen, self.prefix_const.expand(len(features), -1, -1)], dim=1)
        for block in self.transformer.layers:  # type: ignore[union-attr]
            x = block(x)
        return x[:, self.clip_prefix :]


class _Block(nn.Module):
    """Pre-norm attention and a ReLU layer twice as wide; no dropout."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.relu(self.mlp.fc1(self.norm2(x))))  # type: ignore[operator]


class _Attention(nn.Module):
    """Everything sees everything; queries, keys and values without bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "images vectors width"]) -> Tensor:
        images, vectors, width = x.shape
        q = self.to_queries(x).view(images, vectors, self.heads, -1).transpose(1, 2)
        k, v = self.to_keys_values(x).view(images, vectors, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.project(mixed.transpose(1, 2).reshape(images, vectors, width))
