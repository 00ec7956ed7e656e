"""The dual-guided spatial-channel-temporal adapter between two towers (DG-SCT, Duan et al. 2023).

Knows tokens of two modalities. Does not know which is which, nor what happens with its output: the caller adds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families.audio_visual.towers import CrossAdapters, Insertions

if TYPE_CHECKING:
    from perdure.models.clap import Clap
    from perdure.models.clip import Clip


class DualGuidedAdapter(nn.Module):
    """``adapter(x, other)``: a residual for x ``[frames tokens dim]``, guided by ``[frames other_tokens other_dim]``.

    Args:
        shape: tokens and width of x.
        other: tokens and width of the other modality.
        latents: learned tokens that carry the other modality over (K).
        reduction: x's width over that of the bottleneck at the end (r).
        groups: groups of the two linear maps at the end.
        gated: the output is multiplied by a scalar that starts at 0.
        batch_norm: normalize in the bottleneck and after it.
        norm_before: layer norm before the bottleneck.
        norm_after: layer norm at the end.
        weights: of channel, spatial and temporal attention (alpha, beta, gamma).
    """

    def __init__(
        self,
        *,
        shape: tuple[int, int],
        other: tuple[int, int],
        latents: int = 32,
        reduction: int = 8,
        groups: int = 2,
        gated: bool = True,
        batch_norm: bool = False,
        norm_before: bool = True,
        norm_after: bool = True,
        weights: tuple[float, float, float] = (0.2, 0.05, 0.01),
    ) -> None:
        super().__init__()
        (tokens, dim), (other_tokens, other_dim) = shape, other
        self.weights, self.groups = weights, groups
        self.align_tokens = nn.Linear(other_tokens, tokens)
        self.align_dim = nn.Linear(other_dim, dim)
        self.latents = nn.Parameter(torch.rand(latents, dim))
        self.latent_gate = nn.Parameter(torch.zeros(1))
        self.gate = nn.Parameter(torch.zeros(1)) if gated else None
        self.guide_channel, self.token_channel = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.squeeze, self.excite = nn.Linear(dim, dim // 2), nn.Linear(dim // 2, dim)
        self.guide_spatial, self.token_spatial = nn.Linear(dim, dim // 2), nn.Linear(dim, dim // 2)
        self.spatial, self.temporal = nn.Linear(dim // 2, 1), nn.Linear(dim, 1)
        self.down = nn.Conv1d(dim, dim // reduction, 1, groups=groups, bias=False)
        self.up = nn.Conv1d(dim // reduction, dim, 1, groups=groups, bias=False)
        self.norm_down = nn.BatchNorm1d(dim // reduction) if batch_norm else nn.Identity()
        self.norm_up = nn.BatchNorm1d(dim) if batch_norm else nn.Identity()
        self.norm_before = nn.LayerNorm(dim) if norm_before else nn.Identity()
        self.norm_after = nn.LayerNorm(dim) if norm_after else nn.Identity()

    def forward(
        self, x: Float[Tensor, "frames tokens dim"], other: Float[Tensor, "frames other_tokens other_dim"]
    ) -> Float[Tensor, "frames tokens dim"]:
        aligned = align(other, self.align_tokens, self.align_dim)
        latents = self.latents + attend(self.latents, aligned)
        x = x + self.latent_gate * attend(x, latents)
        x = self._scaled(x, guide=aligned.mean(1))
        hidden = F.relu(self.norm_down(self.down(self.norm_before(x).transpose(1, 2))))
        output = self.norm_after(self.norm_up(self.up(hidden)).transpose(1, 2))
        return output if self.gate is None else self.gate * output

    def _scaled(self, x: Tensor, guide: Float[Tensor, "frames dim"]) -> Tensor:
        """x times one factor a channel, a token and a frame, all led by the other modality's mean token."""
        alpha, beta, gamma = self.weights
        channel = (F.relu(self.guide_channel(guide))[:, None] * F.relu(self.token_channel(x))).mean(1)
        channel = torch.sigmoid(self.excite(F.relu(self.squeeze(channel))))[:, None]
        tokens = F.relu(self.token_spatial(x * (channel + 1)))
        spatial = torch.sigmoid(self.spatial(tokens * F.relu(self.guide_spatial(guide))[:, None]))
        temporal = torch.sigmoid(self.temporal(guide))[:, None]
        return x * (alpha * channel + beta * spatial + gamma * temporal + 1 - alpha)


def cross_adapters(clip: Clip, clap: Clap, blocks: Iterable[int], *, latents: int, reduction: int) -> nn.ModuleDict:
    """Fresh adapters in both directions for each block: by its number, ``audio``, ``visual`` and ``visual_second``."""
    vision = clip.vision_config
    visual = ((vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size)
    cross = nn.ModuleDict()
    for block in blocks:
        audio = clap.token_shapes[block]
        shared: Any = {"latents": latents, "reduction": reduction}
        cross[str(block)] = nn.ModuleDict(
            {
                "audio": DualGuidedAdapter(shape=audio, other=visual, **shared),
                "visual": DualGuidedAdapter(shape=visual, other=audio, **shared),
                "visual_second": DualGuidedAdapter(shape=visual, other=audio, **shared),
            }
        )
    return cross


def cross_insertions(adapters: Mapping[str, Any], *, audio_residual: bool) -> Insertions:
    """What `cross_adapters` gave, in every block of both towers."""
    cross = {int(block): CrossAdapters(**dict(trio.items())) for block, trio in adapters.items()}
    return Insertions(adapters=cross, audio_residual=audio_residual)


def align(
    other: Float[Tensor, "frames other_tokens other_dim"], tokens: nn.Linear, dim: nn.Linear
) -> Float[Tensor, "frames tokens dim"]:
    """``dim(tokens over tokens (other))``: the other modality in x's shape.

    The two maps act on different axes, so that they may be taken in either order; the cheaper one is.
    """
    wide, narrow = tokens.out_features, tokens.in_features
    tokens_first = wide * (narrow * dim.in_features + dim.in_features * dim.out_features)
    dim_first = narrow * dim.out_features * (dim.in_features + wide)
    if tokens_first <= dim_first:
        return dim(tokens(other.transpose(1, 2)).transpose(1, 2))
    mapped = tokens.weight @ F.linear(other, dim.weight)
    return mapped + tokens.bias[:, None] * dim.weight.sum(1) + dim.bias


def attend(
    queries: Float[Tensor, "*frames queries dim"], tokens: Float[Tensor, "frames tokens dim"]
) -> Float[Tensor, "frames queries dim"]:
    """For each query the tokens averaged by ``softmax(queries @ tokens.T)``, without scaling."""
    heads = queries.expand(len(tokens), -1, -1)[:, None], tokens[:, None], tokens[:, None]
    return F.scaled_dot_product_attention(*heads, scale=1.0)[:, 0]
