"""LAION's names of a CLAP checkpoint -> Hugging Face's ClapModel, HTSAT audio tower and RoBERTa text tower.

Knows the two naming schemes and how to read the sizes of an HTSAT off tensor shapes (CLAP: Wu et al., ICASSP 2023).
Weights of the fusion of long clips, of the mel matrix and of the classifier are left out. Reads no files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import ClapConfig, ClapModel

from perdure.errors import WeightsError

ROBERTA_EPS = 1e-5
"""Epsilon of the layer norms of roberta-base, on which LAION's text tower stands; ClapTextConfig's default is 1e-12."""
_RENAMED = (
    (r"^(?:audio_branch|htsat)\.", "audio_model.audio_encoder."),
    (r"^text_branch\.", "text_model."),
    (r"^text_model\.embeddings\.position_ids$", ""),
    (r"(audio_encoder\.)bn0\.", r"\1batch_norm."),
    (r"(blocks\.\d+\.)norm1\.", r"\1layernorm_before."),
    (r"(blocks\.\d+\.)norm2\.", r"\1layernorm_after."),
    (r"(blocks\.\d+\.)mlp\.fc1\.", r"\1intermediate.dense."),
    (r"(blocks\.\d+\.)mlp\.fc2\.", r"\1output.dense."),
    (r"(blocks\.\d+\.)attn\.proj\.", r"\1attention.output.dense."),
    (r"(blocks\.\d+\.)attn\.(relative_position_bias_table|relative_position_index)", r"\1attention.self.\2"),
    (r"^(audio|text)_projection\.0\.", r"\1_projection.linear1."),
    (r"^(audio|text)_projection\.2\.", r"\1_projection.linear2."),
)
_LEFT_OUT = re.compile(
    r"spectrogram_extractor|logmel_extractor|tscam_conv|(audio_encoder|audio_branch)\.head\."
    r"|fusion_model|mel_conv2d|mel_conv1d|attn_mask|audio_transform|text_transform|logit_scale$"
)
_QKV = re.compile(r"(.*blocks\.\d+\.)attn\.qkv\.(weight|bias)$")
_OPTIONAL = re.compile(r"position_ids|token_type_ids|relative_position_index|num_batches_tracked|logit_scale_[at]$")


def from_laion(
    state: Mapping[str, Tensor], *, spec_size: int = 256, audio_only: bool = False, where: str = ""
) -> ClapModel:
    """A ClapModel with the weights of a LAION checkpoint (``audio_branch.*``, ``text_branch.*``, projections).

    Args:
        state: tensors by LAION name, of any floating type.
        spec_size: side of the square that a spectrogram is folded to (no tensor tells).
        audio_only: the checkpoint may lack the text tower, which is then random and useless.

    Raises:
        WeightsError: the tensors are not those of such a CLAP.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        renamed |= _renamed(name, value)
    if "audio_model.audio_encoder.patch_embed.proj.weight" not in renamed:
        first = ", ".join(list(state)[:2]) or "none"
        raise WeightsError(
            f"holds {len(state)} tensors ({first} ...), but no CLAP",
            where=where,
            expected="LAION's names (audio_branch.patch_embed.proj.weight ...)",
        )
    needed = "text_model.embeddings.word_embeddings.weight"
    if needed not in renamed and not audio_only:
        raise WeightsError("its text tower is missing", where=where, expected=needed)
    model = ClapModel(infer_config(renamed, spec_size=spec_size))
    expected = model.state_dict()
    missing = [n for n in expected if n not in renamed and not _OPTIONAL.search(n)]
    missing = [n for n in missing if not (audio_only and n.startswith("text_"))]
    if missing:
        raise WeightsError(f"{len(missing)} tensors are missing, first {missing[0]}", where=where)
    for name, tensor in expected.items():
        if name in renamed and renamed[name].shape != tensor.shape:
            found = list(renamed[name].shape)
            raise WeightsError(f"{name} has shape {found}", where=where, expected=str(list(tensor.shape)))
    model.load_state_dict({n: v.to(expected[n].dtype) for n, v in renamed.items() if n in expected}, strict=False)
    return model.eval()


def infer_config(state: Mapping[str, Tensor], *, spec_size: int = 256) -> ClapConfig:
    """The architecture, read off the shapes of renamed tensors."""
    encoder = "audio_model.audio_encoder"
    patches = state[f"{encoder}.patch_embed.proj.weight"]
    stages = _count(state, rf"{encoder}\.layers\.(\d+)\.")
    depths = [_count(state, rf"{encoder}\.layers\.{i}\.blocks\.(\d+)\.") for i in range(stages)]
    tables = [
        state[f"{encoder}.layers.{i}.blocks.0.attention.self.relative_position_bias_table"].shape for i in range(stages)
    ]
    side = patches.shape[-1]
    audio: dict[str, Any] = {
        "window_size": (round(tables[0][0] ** 0.5) + 1) // 2,
        "num_mel_bins": len(state[f"{encoder}.batch_norm.weight"]),
        "spec_size": spec_size,
        "patch_size": side,
        "patch_stride": [side, side],
        "hidden_size": len(state[f"{encoder}.norm.weight"]),
        "projection_dim": len(state["audio_projection.linear1.bias"]),
        "depths": depths,
        "num_attention_heads": [table[1] for table in tables],
        "patch_embeds_hidden_size": len(patches),
        "enable_fusion": False,
        "num_hidden_layers": stages,
    }
    config: Any = {"audio_config": audio, "projection_dim": audio["projection_dim"]}
    config["text_config"] = {"projection_dim": audio["projection_dim"]} | _text_facts(state)
    return ClapConfig(**config)


def _text_facts(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Sizes of the text tower; a single tiny layer where the checkpoint has none."""
    words = state.get("text_model.embeddings.word_embeddings.weight")
    if words is None:
        return {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1} | {
            "intermediate_size": 8,
            "max_position_embeddings": 8,
        }
    width = words.shape[1]
    return {
        "vocab_size": len(words),
        "hidden_size": width,
        "num_hidden_layers": _count(state, r"text_model\.encoder\.layer\.(\d+)\."),
        "num_attention_heads": max(width // 64, 1),
        "intermediate_size": len(state["text_model.encoder.layer.0.intermediate.dense.bias"]),
        "max_position_embeddings": len(state["text_model.embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(state["text_model.embeddings.token_type_embeddings.weight"]),
        "layer_norm_eps": ROBERTA_EPS,
    }


def is_laion(state: Mapping[str, Tensor]) -> bool:
    """Whether the names look like a LAION checkpoint."""
    return any(name.startswith("audio_branch.") for name in state)


def _renamed(name: str, value: Tensor) -> dict[str, Tensor]:
    """New names and values of one tensor (three for a fused q, k, v projection; none if it is left out)."""
    if _LEFT_OUT.search(name):
        return {}
    fused = _QKV.match(name)
    if fused:
        block = re.sub(*_RENAMED[0], fused[1])
        parts = zip(("query", "key", "value"), value.chunk(3))
        return {f"{block}attention.self.{part}.{fused[2]}": tensor.clone() for part, tensor in parts}
    for pattern, new in _RENAMED:
        name = re.sub(pattern, new, name)
    return {name: value} if name else {}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    found = {int(match[1]) for name in state if (match := re.match(pattern, name))}
    return max(found, default=-1) + 1
