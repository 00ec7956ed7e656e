"""Weights of vision transformers in the forms that they come in, as a `VisionTransformer`.

Knows the names of timm, of Hugging Face's ViT, DeiT, DINOv2 and CLIP, and of the first release (``.npz``). Does not
know where files lie, nor pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from perdure.errors import WeightsError
from perdure.models.vit.network import Shape, VisionTransformer

State = Mapping[str, Tensor]
DROPPED = re.compile(
    r"(head|head_dist|fc|pre_logits|(cls_|distillation_)?classifier|pooler|mask_token|embeddings\.mask_token|heads?)\b.*"
)
"""What stands on top, and is not part of a backbone."""
HEADS = {192: 3, 256: 4, 384: 6, 512: 8, 640: 10, 768: 12, 896: 14, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
"""Of the published vision transformers, by width: 64 channels a head up to ViT-L; ViT-H, -g and -G have 16."""
_HF = (
    (r"^(vit|deit|dinov2)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"^layernorm\.", "norm."),
    (r"\.(?:layernorm_before)\.", ".norm1."),
    (r"\.(?:layernorm_after)\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
)

_CLIP = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
)


def build(state: State, *, heads: int | None, eps: float, where: str, quick_gelu: bool = False) -> VisionTransformer:
    """The network that these tensors (timm's names) fill.

    Args:
        heads: of the attentions; None: as published for the width (`HEADS`).

    Raises:
        WeightsError: not the tensors of a vision transformer with a class token, some are left over, or nothing says
            the heads.
    """
    state = {name.removeprefix("backbone.").removeprefix("module."): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not DROPPED.fullmatch(name)}
    shape = shape_of(state, heads=heads, eps=eps, quick_gelu=quick_gelu, where=where)
    with torch.device("meta"):
        network = VisionTransformer(shape)
    own = network.state_dict()
    odd = sorted(own.keys() ^ state.keys())
    if odd:
        lacking = odd[0] in own
        raise WeightsError(
            f"{'has no' if lacking else 'has an unknown'} tensor {odd[0]!r}",
            where=where,
            expected="the tensors of a vision transformer with a class token",
        )
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise WeightsError(
                f"{name} has shape {list(state[name].shape)}", where=where, expected=str(list(tensor.shape))
            )
    network.load_state_dict({n: t.clone() for n, t in state.items()}, assign=True)
    return network


def shape_of(state: State, *, heads: int | None, eps: float, quick_gelu: bool, where: str) -> Shape:
    """Sizes that the tensors have."""
    try:
        kernel, positions = state["patch_embed.proj.weight"], state["pos_embed"]
        blocks = {int(n.split(".")[1]) for n in state if n.startswith("blocks.")}
        dim, patch = kernel.shape[0], kernel.shape[2]
        side, before = _grid(state)
        mlp = state["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, IndexError, ValueError):
        raise WeightsError(
            "not the tensors of a vision transformer", where=where, expected="timm's or Hugging Face's names"
        ) from None
    if positions.shape[1] != side**2 + before:
        raise WeightsError(
            f"{positions.shape[1]} positions", where=where, expected=f"{before}, and those of a square of patches"
        )
    heads = heads or HEADS.get(dim)
    if heads is None:
        raise WeightsError(
            f"nothing says how many heads the attention of width {dim} has", where=where, todo="Set the model's heads."
        )
    if dim % heads:
        raise WeightsError(f"a width of {dim} is not {heads} equal heads", where=where, todo="Set heads.")
    return Shape(
        image_size=side * patch,
        patch=patch,
        dim=dim,
        depth=len(blocks),
        heads=heads,
        mlp=mlp,
        eps=eps,
        quick_gelu=quick_gelu,
        norm_before="norm_pre.weight" in state,
        patch_bias="patch_embed.proj.bias" in state,
        layer_scale="blocks.0.ls1.gamma" in state,
        distilled="dist_token" in state,
    )


def _grid(state: State) -> tuple[int, int]:
    """Patches along a side, and the tokens before them that have positions."""
    before = 2 if "dist_token" in state else 1
    return round(max(state["pos_embed"].shape[1] - before, 0) ** 0.5), before


def from_huggingface(state: State) -> dict[str, Tensor]:
    """Hugging Face's names -> timm's; queries, keys and values become one matrix."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, ours in _HF:
            name = re.sub(pattern, ours, name)
        found[name] = tensor
    return _joined(found, "attention.attention.query", ("query", "key", "value"))


def from_clip(state: State) -> dict[str, Tensor]:
    """The image tower of a Hugging Face CLIP -> timm's names; its projection is left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not name.startswith("vision_model.") or name.endswith("position_ids"):
            continue
        for pattern, ours in _CLIP:
            name = re.sub(pattern, ours, name)
        found[name] = tensor
    if {"cls_token", "pos_embed"} <= found.keys():
        found |= {"cls_token": found["cls_token"].view(1, 1, -1), "pos_embed": found["pos_embed"][None]}
    return _joined(found, "self_attn.q_proj", ("q_proj", "k_proj", "v_proj"))


def _joined(found: dict[str, Tensor], query: str, parts: tuple[str, str, str]) -> dict[str, Tensor]:
    """Queries, keys and values as one matrix, ``attn.qkv``."""
    for name in [n for n in found if f".{query}." in n]:
        names = [name.replace(f".{parts[0]}.", f".{part}.") for part in parts]
        found[name.replace(query, "attn.qkv")] = torch.cat([found.pop(n) for n in names])
    return found


def from_npz(path: Path) -> dict[str, Tensor]:
    """The first release's arrays -> timm's names.

    Raises:
        WeightsError: not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    except (OSError, ValueError) as error:
        raise WeightsError(f"not a readable .npz file ({error})", where=str(path)) from None
    try:
        return _renamed(arrays)
    except KeyError as error:
        raise WeightsError(f"has no array {error}", where=str(path), expected="ViT weights as first released") from None


def _renamed(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {
        "cls_token": arrays["cls"],
        "pos_embed": arrays["Transformer/posembed_input/pos_embedding"],
        "patch_embed.proj.weight": arrays["embedding/kernel"].permute(3, 2, 0, 1),
        "patch_embed.proj.bias": arrays["embedding/bias"],
        "norm.weight": arrays["Transformer/encoder_norm/scale"],
        "norm.bias": arrays["Transformer/encoder_norm/bias"],
    }
    depth = len({n.split("/")[1] for n in arrays if n.startswith("Transformer/encoderblock_")})
    for i in range(depth):
        block, ours = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        attention = f"{block}MultiHeadDotProductAttention_1/"
        three = ("query", "key", "value")
        state[f"{ours}attn.qkv.weight"] = torch.cat([arrays[f"{attention}{n}/kernel"].flatten(1).T for n in three])
        state[f"{ours}attn.qkv.bias"] = torch.cat([arrays[f"{attention}{n}/bias"].flatten() for n in three])
        state[f"{ours}attn.proj.weight"] = arrays[f"{attention}out/kernel"].flatten(0, 1).T
        state[f"{ours}attn.proj.bias"] = arrays[f"{attention}out/bias"]
        for theirs, own in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            state[f"{ours}{own}.weight"] = arrays[f"{block}{theirs}/scale"]
            state[f"{ours}{own}.bias"] = arrays[f"{block}{theirs}/bias"]
        for theirs, own in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
            state[f"{ours}mlp.{own}.weight"] = arrays[f"{block}MlpBlock_3/{theirs}/kernel"].T
            state[f"{ours}mlp.{own}.bias"] = arrays[f"{block}MlpBlock_3/{theirs}/bias"]
    return state


def resized(state: State, *, image_size: int, where: str) -> dict[str, Tensor]:
    """The state with positions for images of another size: bicubic between those that there are.

    Raises:
        WeightsError: the size is no multiple of the patch.
    """
    patch = state["patch_embed.proj.weight"].shape[2]
    if image_size % patch:
        raise WeightsError(f"image_size is {image_size}", where=where, expected=f"a multiple of {patch} pixels")
    positions: Any = state["pos_embed"]
    (side, before), wanted = _grid(state), image_size // patch
    if side == wanted:
        return dict(state)
    grid = positions[:, before:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, size=(wanted, wanted), mode="bicubic", antialias=True)
    places = grid.flatten(2).transpose(1, 2).to(positions.dtype)
    return {**state, "pos_embed": torch.cat([positions[:, :before], places], dim=1)}
