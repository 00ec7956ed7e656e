"""CLIP's vision tower and CLAP's audio tower in lock-step, one block of each at a time, with what a method inserts.

Knows the order in which a block's parts and the insertions act. Does not know where prompts come from, nor heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.errors import RecipeError

if TYPE_CHECKING:
    from perdure.models.clap import Clap
    from perdure.models.clip import Clip

Prefix = tuple[Float[Tensor, "frames length dim"], Float[Tensor, "frames length dim"]]
"""Tokens put before the keys' and the values' input of an attention."""


@dataclass(frozen=True, kw_only=True)
class CrossAdapters:
    """The adapters between the two towers at one block."""

    audio: nn.Module
    """audio tokens, visual tokens -> what the audio copy gains after attention."""
    visual: nn.Module
    """visual tokens, audio tokens -> what the visual tokens gain after attention."""
    visual_second: nn.Module
    """The same after the MLP."""


@dataclass(frozen=True, kw_only=True)
class Insertions:
    """What a method puts into the towers, by block."""

    prefix: Mapping[int, Prefix] = field(default_factory=dict)
    """Of the visual attention."""
    audio_prompt: Mapping[int, Float[Tensor, "segments length dim"]] = field(default_factory=dict)
    """Added to the first channels of the audio tokens before the block, see `add_prompt`."""
    adapters: Mapping[int, CrossAdapters] = field(default_factory=dict)
    audio_residual: bool = False
    """True: what audio adapters give stays in the audio stream. In the published code it reaches only the visual
    adapter after the MLP of the same block."""
    penalty: Float[Tensor, ""] | None = None
    """What inserting them adds to the loss: how far chosen keys are, how alike prompts are."""


def check_pair(clip: Clip, clap: Clap) -> None:
    """Raise a RecipeError unless both towers have the same number of blocks and of joint dimensions."""
    visual, audio = len(_layers(clip)), len(clap.blocks)
    if visual != audio:
        raise RecipeError(
            f"CLIP has {visual} vision blocks, CLAP {audio} audio blocks",
            where="models",
            expected="as many in both, since they run block by block",
            todo="For example openai/clip-vit-base-patch32 with laion/clap-htsat-fused.",
        )
    if clip.dim != clap.dim:
        raise RecipeError(f"CLIP has {clip.dim} joint dimensions, CLAP {clap.dim}", where="models")


def embed_frames(clip: Clip, pixels: Float[Tensor, "frames 3 height width"]) -> Float[Tensor, "frames tokens dim"]:
    """Class and patch tokens with positions, before the first layer norm (x^e)."""
    return _vision(clip).embeddings(pixels.to(clip.dtype))


def run(
    clip: Clip,
    clap: Clap,
    frames: Float[Tensor, "frames tokens dim"],
    patches: Float[Tensor, "frames patches width"],
    insertions: Insertions | None = None,
) -> tuple[Float[Tensor, "frames tokens dim"], Float[Tensor, "frames last wide"]]:
    """Both towers over embedded frames and patches; the tokens of the last blocks, before any final norm.

    Within a block: audio prompt, both attentions (the audio block with its MLP), first adapters, visual MLP, second
    visual adapter. Prompts and adapters get gradients, frozen towers keep no activations before the first of them.
    """
    inserted = insertions or Insertions()
    x, y = _vision(clip).pre_layrnorm(frames), patches
    for index, (layer, block) in enumerate(zip(_layers(clip), clap.blocks, strict=True)):
        if index in inserted.audio_prompt:
            y = add_prompt(y, inserted.audio_prompt[index])
        x = x + prefix_attention(layer.self_attn, layer.layer_norm1(x), inserted.prefix.get(index))
        y = block(y)
        adapters = inserted.adapters.get(index)
        if adapters is None:
            x = x + layer.mlp(layer.layer_norm2(x))
        else:
            gained, x = adapters.audio(y, x), x + adapters.visual(x, y)
            heard = y + gained
            x = x + layer.mlp(layer.layer_norm2(x))
            x = x + adapters.visual_second(x, heard)
            y = heard if inserted.audio_residual else y
        y = block.merged(y)
    return x, y


@contextmanager
def stochastic_depth(clap: Clap, *, highest: float) -> Iterator[None]:
    """Within: both branches of each audio block are left out for a segment, ever more often up to `highest`."""
    hooks = []
    blocks = clap.blocks if highest else []
    for index, block in enumerate(blocks):
        rate = highest * index / max(len(blocks) - 1, 1)
        layer: Any = block.layer
        for branch in (layer.drop_path, layer.output):
            hooks.append(branch.register_forward_hook(lambda _m, _x, y, rate=rate: _dropped(y, rate)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _dropped(branch: Tensor, rate: float) -> Tensor:
    """Each sample kept with probability ``1 - rate``, and scaled up to keep the mean."""
    keep = (torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= rate).to(branch.dtype)
    return branch * keep / (1 - rate)


def frame_features(clip: Clip, tokens: Float[Tensor, "frames tokens dim"]) -> Float[Tensor, "frames joint"]:
    """Projected class token of the last block, not normalized."""
    return clip.model.visual_projection(_vision(clip).post_layernorm(tokens[:, 0]))


def prefix_attention(
    attention: nn.Module, hidden: Float[Tensor, "frames tokens dim"], prefix: Prefix | None = None
) -> Float[Tensor, "frames tokens dim"]:
    """Self-attention whose keys and values also see a prefix (Li and Liang 2021; DualPrompt, Wang et al. 2022).

    The prefix goes through the key and value projections before the tokens; queries are the tokens alone: with 3 tokens
    and a prefix of 2, scores are ``[3, 5]``, each row sums to 1 over prefix and tokens, and 3 tokens come out. A prefix
    whose keys score as the tokens do takes 2/5 of the attention. `attention` is a `CLIPAttention`.
    """
    module: Any = attention
    # 1) what keys and values are made of: the prefix first
    keys = values = hidden
    if prefix is not None:
        keys, values = (torch.cat([tokens.to(hidden.dtype), hidden], dim=1) for tokens in prefix)
    # 2) projections, split into heads: [frames heads tokens head_dim]
    parts = (module.q_proj(hidden), module.k_proj(keys), module.v_proj(values))
    query, key, value = (p.unflatten(2, (module.num_heads, module.head_dim)).transpose(1, 2) for p in parts)
    # 3) attention over prefix and tokens, heads joined again
    attended = F.scaled_dot_product_attention(query, key, value, scale=module.scale)
    return module.out_proj(attended.transpose(1, 2).flatten(2))


def add_prompt(
    tokens: Float[Tensor, "segments tokens dim"], prompt: Float[Tensor, "segments length width"]
) -> Float[Tensor, "segments tokens dim"]:
    """The prompt, read row by row as a map of the tokens, added to their first channels.

    24576 numbers are 24 channels of 1024 tokens, or 96 channels of 256 tokens.
    """
    n = tokens.shape[1]
    size = prompt.shape[1] * prompt.shape[2]
    if size % n or size // n > tokens.shape[2]:
        raise RecipeError(
            f"an audio prompt of {prompt.shape[1]} x {prompt.shape[2]} numbers does not fit {n} tokens "
            f"of {tokens.shape[2]} channels",
            where="method: middle layers",
            todo="Choose other middle layers or another prompt length.",
        )
    added = prompt.reshape(len(prompt), n, size // n)
    return tokens + F.pad(added, (0, tokens.shape[2] - size // n))


def _vision(clip: Clip) -> Any:
    return clip.model.vision_model


def _layers(clip: Clip) -> Any:
    return _vision(clip).encoder.layers
