"""OpenAI and open_clip names of a CLIP with vision transformer <-> Hugging Face's CLIPModel.

Knows the two naming schemes and how to read an architecture off tensor shapes. Does not read
files, tokenise or preprocess. Vision towers with other layers (ResNet, timm) are recognised and refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from perdure.errors import WeightsError

_OUTSIDE_BLOCKS = {
    "logit_scale": "logit_scale",
    "text_projection": "text_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.proj": "visual_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection", "visual.proj"}
_IN_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TOWERS = {"visual.transformer.resblocks": "vision_model.encoder.layers"} | {
    "transformer.resblocks": "text_model.encoder.layers"
}
_BLOCK = re.compile(r"(visual\.transformer\.resblocks|transformer\.resblocks)\.(\d+)\.(.+)")
_FACTS = {"input_resolution", "context_length", "vocab_size", "attn_mask"}
"""Constants that OpenAI's archives keep among the tensors."""


def from_openai(
    state: Mapping[str, Tensor],
    *,
    quick_gelu: bool = True,
    heads: tuple[int, int] | None = None,
    eps: tuple[float, float] = (1e-5, 1e-5),
    tanh_gelu: tuple[bool, bool] = (False, False),
    dtype: torch.dtype = torch.float32,
    where: str = "",
) -> CLIPModel:
    """A CLIPModel with the weights of an OpenAI or open_clip state dict.

    Args:
        state: tensors by OpenAI name, of any floating type.
        quick_gelu: ``x * sigmoid(1.702 x)`` (OpenAI, DFN, MetaCLIP) instead of GELU (LAION, DataComp).
        heads: attention heads of the (vision, text) tower; None: width / 64.
        eps: epsilon of the layer norms of the (vision, text) tower.
        tanh_gelu: GELU approximated with tanh in the (vision, text) tower.
        where: what error messages call the source.

    Raises:
        WeightsError: the tensors are not those of a CLIP with a vision transformer.
    """
    state = _plain_names(state, where)
    config: Any = infer_config(state, quick_gelu=quick_gelu, heads=heads, where=where)
    for tower, epsilon, tanh in zip((config.vision_config, config.text_config), eps, tanh_gelu):
        tower.layer_norm_eps = epsilon
        tower.hidden_act = "gelu_pytorch_tanh" if tanh else tower.hidden_act
    with torch.device("meta"):
        model = CLIPModel(config)
    renamed = {new: value.to(dtype) for old, v in state.items() for new, value in _to_hf(old, v)}
    _check_same(model, renamed, where)
    model.load_state_dict(renamed, strict=True, assign=True)
    parts: list[Any] = [model.text_model.embeddings, model.vision_model.embeddings]
    for part in parts:  # a constant that no checkpoint holds
        part.position_ids = torch.arange(part.position_embedding.num_embeddings).expand(1, -1).clone()
    return model.requires_grad_(True).eval()


def to_openai(model: CLIPModel) -> dict[str, Tensor]:
    """The model's weights under OpenAI's names (the reverse of `from_openai`)."""
    source = model.state_dict()
    result = {
        old: source[new].T.contiguous() if old in _TRANSPOSED else source[new] for old, new in _OUTSIDE_BLOCKS.items()
    }
    for old_tower, new_tower in _TOWERS.items():
        tower = model.vision_model if old_tower.startswith("visual") else model.text_model
        for i in range(len(tower.encoder.layers)):
            old, new = f"{old_tower}.{i}", f"{new_tower}.{i}"
            for part in ("weight", "bias"):
                qkv = [source[f"{new}.self_attn.{p}_proj.{part}"] for p in "qkv"]
                result[f"{old}.attn.in_proj_{part}"] = torch.cat(qkv)
                for a, b in _IN_BLOCK.items():
                    result[f"{old}.{a}.{part}"] = source[f"{new}.{b}.{part}"]
    return result


def infer_config(
    state: Mapping[str, Tensor], *, quick_gelu: bool, heads: tuple[int, int] | None = None, where: str = ""
) -> CLIPConfig:
    """The architecture, read off the shapes of an OpenAI state dict (patch size, widths, layers ...)."""
    patches = state["visual.conv1.weight"]
    vision_width, _, patch, _ = patches.shape
    grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    if grid**2 + 1 != state["visual.positional_embedding"].shape[0]:
        raise WeightsError("the patches do not form a square", where=where)
    vocabulary, text_width = state["token_embedding.weight"].shape
    vision_heads, text_heads = heads or (vision_width // 64, text_width // 64)
    for tower, width, n in (("vision", vision_width, vision_heads), ("text", text_width, text_heads)):
        if n < 1 or width % n:
            raise WeightsError(
                f"{n} heads do not divide the {tower} width {width}",
                where=where,
                todo="Set `heads: [vision, text]`.",
            )
    activation = "quick_gelu" if quick_gelu else "gelu"
    dim = state["text_projection"].shape[1]
    return CLIPConfig(
        projection_dim=dim,
        text_config={
            "hidden_size": text_width,
            "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": _layers(state, "transformer.resblocks"),
            "num_attention_heads": text_heads,
            "max_position_embeddings": state["positional_embedding"].shape[0],
            "vocab_size": vocabulary,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": 0,
            "hidden_act": activation,
            "projection_dim": dim,
        },
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": _layers(state, "visual.transformer.resblocks"),
            "num_attention_heads": vision_heads,
            "image_size": grid * patch,
            "patch_size": patch,
            "hidden_act": activation,
            "projection_dim": dim,
        },
    )


def sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """What the tensors show, named as in ``open_clip_config.json``; a vision tower that is no ViT is left out."""
    state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    found: dict[str, int] = {}
    towers = {"text_cfg": ("transformer.resblocks", ""), "vision_cfg": ("visual.transformer.resblocks", "visual.")}
    for name, (blocks, prefix) in towers.items():
        if f"{blocks}.0.mlp.c_fc.weight" in state and f"{prefix}positional_embedding" in state:
            found[f"{name}.layers"] = _layers(state, blocks)
            found[f"{name}.width x mlp_ratio"], found[f"{name}.width"] = state[f"{blocks}.0.mlp.c_fc.weight"].shape
    if "token_embedding.weight" in state and "positional_embedding" in state:
        found["text_cfg.vocab_size"] = len(state["token_embedding.weight"])
        found["text_cfg.context_length"] = len(state["positional_embedding"])
    if "text_projection" in state:
        found["embed_dim"] = state["text_projection"].shape[1]
    if "visual.conv1.weight" in state and "visual.positional_embedding" in state:
        patch = found["vision_cfg.patch_size"] = state["visual.conv1.weight"].shape[-1]
        found["vision_cfg.image_size"] = round((len(state["visual.positional_embedding"]) - 1) ** 0.5) * patch
    return found


def check_sizes(state: Mapping[str, Tensor], said: Mapping[str, int], *, where: str) -> None:
    """Raise a WeightsError if the tensors have other sizes than a file beside them says."""
    for name, found in sizes(state).items():
        if said.get(name, found) != found:
            raise WeightsError(f"{name} is {said[name]}", where=where, expected=f"{found}, as the weights have it")


def is_openai(state: Mapping[str, Tensor]) -> bool:
    """Whether the names look like an OpenAI or open_clip CLIP of any architecture."""
    return any(name.startswith("visual.") for name in state)


def _plain_names(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """OpenAI names without constants and without the ``text.`` that some open_clip models put first."""
    weights = {k: v for k, v in state.items() if v.is_floating_point() and k not in _FACTS}
    plain = {k: v for k, v in weights.items() if not k.endswith(".attn_mask")}
    if any(k.startswith("text.transformer.") for k in plain):
        plain = {k.removeprefix("text."): v for k, v in plain.items() if k != "text.attn_mask"}
    if not is_openai(plain):
        raise WeightsError(
            f"holds {len(plain)} tensors ({', '.join(list(plain)[:2]) or 'none'} ...), but no CLIP",
            where=where,
            expected="OpenAI's or open_clip's names (visual.conv1.weight ...)",
        )
    if "visual.layer1.0.conv1.weight" in plain or any(k.startswith("visual.trunk.") for k in plain):
        raise WeightsError(
            "its vision tower is not a vision transformer of CLIP",
            where=where,
            expected="a CLIP ViT",
            todo="For CLIP's ResNets (RN50 ...), use the model `clip_resnet`.",
        )
    needed = [*_OUTSIDE_BLOCKS, *(f"{t}.0.mlp.c_fc.weight" for t in _TOWERS)]
    missing = [name for name in needed if name not in plain]
    if missing:
        raise WeightsError(f"{len(missing)} tensors are missing, first {missing[0]}", where=where)
    return plain


def _layers(state: Mapping[str, Tensor], tower: str) -> int:
    found = {int(m[2]) for m in map(_BLOCK.fullmatch, state) if m and m[1] == tower}
    return max(found) + 1


def _to_hf(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    """New names and values of one OpenAI tensor (three for a fused q, k, v projection)."""
    if name in _OUTSIDE_BLOCKS:
        return [(_OUTSIDE_BLOCKS[name], value.T.contiguous() if name in _TRANSPOSED else value)]
    block = _BLOCK.fullmatch(name)
    if block is None:
        return [(name, value)]
    layer = f"{_TOWERS[block[1]]}.{block[2]}"
    rest = block[3]
    if rest.startswith("attn.in_proj_") and value.shape[0] % 3 == 0:
        part = rest.removeprefix("attn.in_proj_")
        return [(f"{layer}.self_attn.{p}_proj.{part}", v.clone()) for p, v in zip("qkv", value.chunk(3))]
    stem, _, part = rest.rpartition(".")
    return [(f"{layer}.{_IN_BLOCK.get(stem, stem)}.{part}", value)]


def _check_same(model: CLIPModel, state: Mapping[str, Tensor], where: str) -> None:
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if missing := sorted(expected.keys() - state.keys()):
        raise WeightsError(f"{len(missing)} tensors are missing, first {missing[0]}", where=where)
    if unknown := sorted(state.keys() - expected.keys()):
        raise WeightsError(f"{len(unknown)} tensors are unknown to CLIP, first {unknown[0]}", where=where)
    for name, shape in expected.items():
        if state[name].shape != shape:
            raise WeightsError(f"{name} has shape {list(state[name].shape)}", where=where, expected=str(list(shape)))
