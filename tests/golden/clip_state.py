"""The tiny CLIP of the golden vectors, made by perdure's own converter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from perdure.models.clip import Clip
from perdure.models.clip.convert import from_openai


def golden_clip(folder: Path, dtype: torch.dtype = torch.float64) -> Clip:
    """The CLIP of ``clip_state.npz`` (OpenAI's names, float32), cast to `dtype`. It has no tokenizer."""
    with np.load(folder / "clip_state.npz") as arrays:
        heads = int(arrays["meta_heads"])
        state = {n: torch.from_numpy(arrays[n]) for n in arrays.files if not n.startswith("meta_")}
    return Clip(from_openai(state, heads=(heads, heads), dtype=dtype))


def lora_name(official: str) -> str:
    """``visual.transformer.resblocks.0.attn.k_proj_weight_lora_A`` under its name in `perdure.layers.lora`."""
    tower = "vision_model" if official.startswith("visual.") else "text_model"
    layer, _, rest = official.removeprefix("visual.").removeprefix("transformer.resblocks.").partition(".attn.")
    projection, _, factor = rest.partition("_weight_lora_")
    return f"{tower}.encoder.layers.{layer}.self_attn.{projection}.lora_{factor}.weight"
