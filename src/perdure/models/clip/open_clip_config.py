"""What ``open_clip_config.json`` beside weights says: each field is used, changes nothing here, or is refused by name.

Knows open_clip's fields and the values that they have where they are absent. Does not know tensors' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.errors import WeightsError
from perdure.models.clip.transform import MEAN, STD, ClipTransform, channel_triple, read_json

FILE = "open_clip_config.json"
_TRAINING_ONLY = {"init_logit_scale", "output_dict", "cast_dtype", "custom_text"}
"""Fields of ``model_cfg`` that change nothing in weights that are there already."""
_VISION = {
    "ls_init_value": None,
    "patch_dropout": 0,
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "pool_type": "tok",
    "timm_model_name": None,
}
_TEXT = {
    "hf_model_name": None,
    "hf_tokenizer_name": None,
    "tokenizer_mode": None,
    "tokenizer_kwargs": None,
    "ls_init_value": None,
    "embed_cls": False,
    "no_causal_mask": False,
    "final_ln_after_pool": False,
    "proj_bias": False,
    "proj_type": "linear",
}
_BLOCK = {"block_type": None, "qk_norm": False, "scaled_cosine_attn": False, "scale_heads": False}
_BLOCK |= {"scale_attn_inner": False, "scale_attn": False, "scale_fc": False}
_ONLY_VALUE = {"vision_cfg": _VISION | _BLOCK, "text_cfg": _TEXT | _BLOCK}
"""Fields with the one value that CLIP as it is here has; another is refused."""
_USED = {
    "vision_cfg": {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type", "eos_id"},
}
_BOTH_USED = {"act_kwargs", "norm_kwargs"}
_NO_EFFECT = {
    "vision_cfg": {"output_tokens", "attn_pooler_queries", "attn_pooler_heads"},
    "text_cfg": {"output_tokens", "pad_id"},
}
_PREPROCESS = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}


@dataclass(frozen=True)
class Said:
    """What the file says that tensors do not show; None: the file does not say."""

    where: str
    quick_gelu: bool = False
    heads: tuple[int, int] | None = None
    """Attention heads of the vision and the text tower."""
    tanh_gelu: tuple[bool, bool] = (False, False)
    """GELU by its approximation with tanh, by tower."""
    eps: tuple[float, float] = (1e-5, 1e-5)
    """Epsilon of the layer norms, by tower."""
    sizes: Mapping[str, int] | None = None
    """Sizes that the tensors must have, by the names of `convert.sizes`."""


def beside(folder: Path) -> Said | None:
    """What the file in `folder` says of the model, or None if there is no file.

    Raises:
        WeightsError: a field has a value that this CLIP does not have, or is unknown.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    where = str(path)
    content = read_json(path)
    _known(content, {"model_cfg", "preprocess_cfg"}, "", where)
    model = _mapping(content, "model_cfg", where)
    _known(model, {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"} | _TRAINING_ONLY | _UNLIKE.keys(), "", where)
    _only(model, _UNLIKE, "", where)
    towers = [_tower(model, name, where) for name in ("vision_cfg", "text_cfg")]
    vision, text = towers
    quick = bool(model.get("quick_gelu", False))
    tanh = tuple(_tanh_gelu(tower, quick, where) for tower in towers)
    eps = tuple(_eps(tower, where) for tower in towers)
    return Said(
        where=where,
        quick_gelu=quick,
        heads=_heads(vision, text, where) if vision and text else None,
        tanh_gelu=(tanh[0], tanh[1]),
        eps=(eps[0], eps[1]),
        sizes=_sizes(model, vision, text),
    )


_UNLIKE = {"multimodal_cfg": None, "nonscalar_logit_scale": False, "init_logit_bias": None}


def transform(folder: Path, *, size: int) -> ClipTransform:
    """The preprocessing that the file in `folder` describes. Raises as `beside`."""
    path = folder / FILE
    where, said = str(path), _mapping(read_json(path), "preprocess_cfg", str(path))
    _known(said, _PREPROCESS, "preprocess_cfg.", where)
    sides = said.get("size") or size
    sides = {sides} if isinstance(sides, int) else set(sides[-2:]) if isinstance(sides, list) else {None}
    _refuse(sides != {size}, f"preprocess_cfg.size is {said.get('size')}", f"the model's {size}", where)
    _only(said, {"mode": "RGB"}, "preprocess_cfg.", where)
    how, mode = said.get("interpolation") or "bicubic", said.get("resize_mode") or "shortest"
    _refuse(how not in ("bicubic", "bilinear", "random"), f"interpolation is {how!r}", "bicubic or bilinear", where)
    _refuse(mode not in ("shortest", "squash"), f"resize_mode is {mode!r}", "shortest or squash", where)
    return ClipTransform(
        size=size,
        mean=channel_triple(said.get("mean") or MEAN, where),
        std=channel_triple(said.get("std") or STD, where),
        keep_aspect=mode == "shortest",
        interpolation="bilinear" if how == "bilinear" else "bicubic",
    )


def _tower(model: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    tower = _mapping(model, name, where)
    _only(tower, _ONLY_VALUE[name], f"{name}.", where)
    known = _USED[name] | _BOTH_USED | _NO_EFFECT[name] | _ONLY_VALUE[name].keys()
    # Settings of towers by timm and Hugging Face, which were just found absent.
    _known({k: v for k, v in tower.items() if not k.startswith(("timm_", "hf_"))}, known, f"{name}.", where)
    pool = tower.get("pool_type", "argmax")
    if name == "text_cfg" and pool != "argmax":
        last = tower.get("vocab_size", 49408) - 1  # where the tokenizer's end token is
        at_end = pool == "eos" and tower.get("eos_id", 2) == last
        _refuse(not at_end, f"text_cfg.pool_type is {pool!r}", f"'argmax', or 'eos' with eos_id {last}", where)
    return tower


def _heads(vision: Mapping[str, Any], text: Mapping[str, Any], where: str) -> tuple[int, int]:
    """open_clip's own rule: the vision tower by `head_width`, the text tower by `heads`."""
    width, each = vision.get("width", 768), vision.get("head_width", 64)
    if isinstance(vision.get("layers", 12), list):  # a ResNet: of its attention pooling
        width *= 32
    _refuse(not isinstance(each, int) or each < 1, f"vision_cfg.head_width is {each!r}", "a number from 1", where)
    return width // each, text.get("heads", 8)


def _tanh_gelu(tower: Mapping[str, Any], quick: bool, where: str) -> bool:
    said = tower.get("act_kwargs") or {}
    known = not said or (said in ({"approximate": "tanh"}, {"approximate": "none"}) and not quick)
    _refuse(not known, f"act_kwargs is {said}", "{'approximate': 'tanh'}, without quick_gelu", where)
    return said.get("approximate") == "tanh"


def _eps(tower: Mapping[str, Any], where: str) -> float:
    said = tower.get("norm_kwargs") or {}
    _refuse(not said.keys() <= {"eps"}, f"norm_kwargs is {said}", "{'eps': number}", where)
    return float(said.get("eps", 1e-5))


def _sizes(model: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, int]:
    """What is said in so many words."""
    said = {"embed_dim": model.get("embed_dim")}
    for name, tower in (("vision_cfg", vision), ("text_cfg", text)):
        said |= {f"{name}.{k}": tower.get(k) for k in ("layers", "width", "patch_size", "context_length", "vocab_size")}
        if "mlp_ratio" in tower and "width" in tower:
            said[f"{name}.width x mlp_ratio"] = int(tower["width"] * tower["mlp_ratio"])
    side = vision.get("image_size")
    said["vision_cfg.image_size"] = side[0] if isinstance(side, list) and len(set(side)) == 1 else side
    return {name: value for name, value in said.items() if value is not None}


def _mapping(content: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    found = content.get(name) or {}
    _refuse(not isinstance(found, dict), f"{name} is {found!r}", "an object", where)
    return found


def _known(found: Mapping[str, Any], known: set[str], prefix: str, where: str) -> None:
    unknown = sorted(found.keys() - known)
    if unknown:
        _refuse(True, f"{prefix}{unknown[0]} is unknown here", ", ".join(sorted(known)), where)


def _only(found: Mapping[str, Any], values: Mapping[str, Any], prefix: str, where: str) -> None:
    for name, value in values.items():
        said = found.get(name, value)
        wrong = said != value and not (value is None and said in ({}, "")) and not (value == "RGB" and said is None)
        _refuse(wrong, f"{prefix}{name} is {said!r}", repr(value), where)


def _refuse(when: bool, what: str, expected: str, where: str) -> None:
    if when:
        todo = "Such a CLIP cannot be computed here."
        raise WeightsError(what, where=where, expected=expected, todo=todo)
