"""A language model in 8 or 4 bits by bitsandbytes; its head, embeddings, projector and vision tower stay as they are.

Knows transformers' and bitsandbytes' settings and layers. Does not know updates: they are learned beside what the
quantized weights stand for, so an export writes those numbers, not the first checkpoint's.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perdure.errors import MissingExtra
from perdure.models.vlm.checkpoint import decoder, empty_model


def settings(how: str, empty: Any, dtype: torch.dtype) -> dict[str, Any]:
    """What ``from_pretrained`` takes.

    Args:
        how: `int8` or `nf4`.
        empty: the network without weights, which tells the layers that are left alone.
        dtype: in which products are made.

    Raises:
        MissingExtra: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise MissingExtra(f"quantize={how} needs bitsandbytes", todo='Type: pip install "perdure[quantize]"')
    from transformers import BitsAndBytesConfig

    inside = {id(m) for m in decoder(empty).modules()}
    aside = [name for name, m in empty.named_modules() if isinstance(m, nn.Linear) and id(m) not in inside]
    own: dict[str, Any] = {"load_in_8bit": True}
    if how == "nf4":
        own = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": dtype,
        }
    return {"quantization_config": BitsAndBytesConfig(llm_int8_skip_modules=aside, **own)}


def readable(model: Any) -> None:
    """Keep 4-bit layers from repacking their weights at the first answer, as they do on CPUs with AVX-512: what is
    repacked cannot be read again."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def save(model: Any, folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the network as one that was never quantized. `state`: its weights as numbers, and what else it holds."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    plain = empty_model(config)
    plain.generation_config = model.generation_config
    names = plain.state_dict().keys()
    plain.save_pretrained(str(folder), state_dict={name: t for name, t in state.items() if name in names})
