"""A vision transformer with timm's names (Dosovitskiy et al. 2021), open to what methods insert into its blocks.

Knows patches, positions, blocks and the last layer norm, with the variants of CLIP's towers (a layer norm in front,
quick GELU), of DINOv2 (layer scale) and of DeiT (a distillation token). Does not know where weights come from, nor
classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Prefix = tuple[Float[Tensor, "*images length dim"], Float[Tensor, "*images length dim"]]
"""Vectors put before the keys and before the values of an attention; they pass neither projection nor layer norm."""


@dataclass(frozen=True, kw_only=True)
class Insertions:
    """What a method puts into the transformer; nothing by default."""

    prompts: Float[Tensor, "images length dim"] | None = None
    """Tokens after the class token; each gets the class token's position."""
    prefixes: Mapping[int, Prefix] = field(default_factory=dict)
    """By block."""


NOTHING = Insertions()


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes and variants of a vision transformer."""

    image_size: int
    patch: int
    dim: int
    depth: int
    heads: int
    mlp: int
    eps: float = 1e-6
    quick_gelu: bool = False
    norm_before: bool = False
    """A layer norm before the first block (CLIP)."""
    patch_bias: bool = True
    layer_scale: bool = False
    """A trained factor on each channel of what attention and MLP add (DINOv2)."""
    distilled: bool = False
    """A second token after the class token (DeiT's distillation), with a position of its own."""


class VisionTransformer(nn.Module):
    """``[images 3 size size] -> [images tokens dim]`` after the last layer norm: class token, prompts, patches."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        side = shape.image_size // shape.patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, shape.dim)) if shape.distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + shape.distilled + side**2, shape.dim))
        self.patch_embed = PatchEmbedding(shape)
        self.norm_pre = nn.LayerNorm(shape.dim, eps=shape.eps) if shape.norm_before else nn.Identity()
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.dim, eps=shape.eps)

    def forward(
        self, pixels: Float[Tensor, "images 3 size size"], inserted: Insertions = NOTHING
    ) -> Float[Tensor, "images tokens dim"]:
        patches = self.patch_embed(pixels)
        if self.dist_token is not None:
            patches = torch.cat([self.dist_token.expand(len(patches), -1, -1), patches], dim=1)
        first, places = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        begin = self.cls_token.expand(len(patches), -1, -1)
        if inserted.prompts is not None:
            begin = torch.cat([begin, inserted.prompts.to(begin.dtype)], dim=1)
        x = self.norm_pre(torch.cat([begin + first, patches + places], dim=1))
        for index, block in enumerate(self.blocks):
            x = block(x, inserted.prefixes.get(index))
        return self.norm(x)


class PatchEmbedding(nn.Module):
    """Squares of pixels become tokens."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.dim, shape.patch, stride=shape.patch, bias=shape.patch_bias)

    def forward(self, pixels: Tensor) -> Float[Tensor, "images patches dim"]:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention, then an MLP; each after a layer norm and added to the tokens.

    A method may set `adapter`, which sees what the MLP's layer norm sees and is added to the MLP's output, and `extra`
    tokens, which end the sequence within the block and are cut off after it.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(shape.dim, eps=shape.eps) for _ in range(2))
        self.attn, self.mlp = Attention(shape.dim, shape.heads), Mlp(shape)
        self.ls1, self.ls2 = (LayerScale(shape.dim) if shape.layer_scale else nn.Identity() for _ in range(2))

        self.adapter: nn.Module | None = None
        self.extra: nn.Module | None = None

    def forward(self, x: Float[Tensor, "images tokens dim"], prefix: Prefix | None = None) -> Tensor:
        count = x.shape[1]
        if self.extra is not None:
            x = torch.cat([x, self.extra(x)], dim=1)
        x = x + self.ls1(self.attn(self.norm1(x), prefix))
        out = x + self.ls2(self.mlp(self.norm2(x)))
        if self.adapter is not None:
            out = out + self.adapter(x)
        return out[:, :count]


class Attention(nn.Module):
    """Self-attention of tokens, whose keys and values may have a prefix."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "images tokens dim"], prefix: Prefix | None = None) -> Tensor:
        query, keys, values = self.qkv(x).chunk(3, dim=2)
        if prefix is not None:
            before = [part.shape[-2] for part in prefix]
            if before[0] != before[1]:  # on a CPU PyTorch's attention reads beyond the values' end
                raise ValueError(f"a prefix of {before[0]} keys and {before[1]} values")
            keys, values = (
                torch.cat([p.to(x.dtype).expand(len(x), -1, -1), tokens], dim=1)
                for p, tokens in zip(prefix, (keys, values))
            )
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (query, keys, values))
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with (quick) GELU between them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(shape.dim, shape.mlp), nn.Linear(shape.mlp, shape.dim)
        self.quick = shape.quick_gelu

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        return self.fc2(hidden * torch.sigmoid(1.702 * hidden) if self.quick else F.gelu(hidden))


class LayerScale(nn.Module):
    """A factor on each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma
