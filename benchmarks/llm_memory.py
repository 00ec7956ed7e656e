"""Memory of tuning models of 7 B parameters by low-rank updates, counted on their own classes: nothing is measured.

    python -m benchmarks.llm_memory

Networks are made of transformers' classes with the sizes of the published checkpoints, on the meta device: no weight is
there. Counted are the weights as they are loaded, the layers that a method adapts (`Vlm.linear_names`), factors with
gradient and AdamW's moments in float32, and what each past task leaves. Not counted: activations, and what libraries
keep for themselves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import transformers as hf

from perdure.models.language_model import LanguageModel
from perdure.models.vlm import checkpoint

BYTES = {"bf16": 2.0, "int8": 1.01, "nf4": 0.52}
"""Of a weight within the language model; head, embeddings, projector and vision tower stay bfloat16."""
TRAINED = 16
"""Bytes of a trained number: itself, gradient, two moments, each float32."""
FACTOR = 4
"""Bytes of a past task's factors: float32, beside the weights."""
FRACTION, POSITION = 0.02, 3
"""Of SEFE's key elements, and the bytes of each (`sefe.key_elements.Elements`)."""
TASKS = 8
METHODS = (
    ("LoRA", "bf16", False),
    ("QLoRA", "nf4", False),
    ("SEFE", "bf16", True),
    ("SEFE", "int8", True),
    ("SEFE", "nf4", True),
)
"""Name, kind of the weights, and whether key elements are kept."""


class Counted(NamedTuple):
    """Numbers of a network."""

    inside: int
    """In weights that are adapted, and quantized where it is asked for."""
    aside: int
    """In all others."""
    ends: int
    """Outputs and inputs of the adapted layers, added up: a factor of rank 1."""


def llava() -> Any:
    """LLaVA-1.5-7B: Vicuna's Llama and CLIP ViT-L/14 at 336 pixels."""
    text = {"model_type": "llama", "vocab_size": 32064}  # all else is LlamaConfig's default, the 7 B
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    }
    return hf.LlavaConfig(text_config=text, vision_config=vision)


def qwen() -> Any:
    """Qwen2.5-VL-7B."""
    text = {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    return hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)


def counted(config: Any) -> Counted:
    """The numbers of a network, and of the layers that are adapted."""
    model = checkpoint.empty_model(config)
    adapted = [model.get_submodule(name) for name in _Named(model).linear_names().values()]
    inside = sum(layer.weight.numel() for layer in adapted)
    whole = sum(p.numel() for p in model.parameters())
    return Counted(inside, whole - inside, sum(sum(layer.weight.shape) for layer in adapted))


class _Named(LanguageModel):
    """A network without its tokenizer."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, None)

    @property
    def language_model(self) -> Any:
        return checkpoint.decoder(self.model)


def row(of: Counted, kind: str, rank: int, *, sefe: bool) -> dict[str, float]:
    """Bytes: weights, what is trained, what each past task leaves, and all of it at the last task."""
    weights = BYTES[kind] * of.inside + 2 * of.aside
    factors = rank * of.ends
    past = FACTOR * factors + (POSITION * FRACTION * of.inside if sefe else 0)
    trained = TRAINED * factors
    return {"weights": weights, "trained": trained, "past": past, "total": weights + trained + (TASKS - 1) * past}


def main() -> None:
    print("| model | method | weights | rank | weights | trained | each past task | at task 8 |")
    print("|---|---|---|---:|---:|---:|---:|---:|")
    for name, config in (("LLaVA-1.5-7B", llava()), ("Qwen2.5-VL-7B", qwen())):
        of = counted(config)
        for method, kind, sefe in METHODS:
            for rank in (128, 32):
                cells = [f"{cell / 1e9:.1f} GB" for cell in row(of, kind, rank, sefe=sefe).values()]
                print(f"| {name} | {method} | {kind} | {rank} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
