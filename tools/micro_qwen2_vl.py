"""Makes micro-qwen2-vl: a Qwen2-VL of 1.9 million parameters for pictures of microworld, started from micro-llava.

    python tools/micro_qwen2_vl.py OUT

Its blocks are micro-llava's, tower and language model, where both architectures have the same layers; what differs
(rotary positions of patches and of image tokens, no class token, a template of its own) is learned on the same
conversations as micro-llava's. Knows the two architectures and the loop. What conversations are is `micro_llava`'s
affair. It is not shipped: a run that needs it makes it.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import micro_llava
import numpy as np
import torch
import transformers as hf
from micro_pretraining import lr_factor
from torch import Tensor, nn

from perdure.data.microworld import coin, scenes
from perdure.models import llava
from perdure.models.llava import Llava
from perdure.models.llava.images import MEAN, STD
from perdure.models.vlm import Vlm
from perdure.types import Example

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + (m['role'] | upper) + '\n' }}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif c['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>ASSISTANT\n' }}{% endif %}"
)
"""Qwen's, with roles in capitals: these are words of micro-llava's."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of what is learned after the start."""

    seed: int = 4
    steps: int = 100
    batch: int = 32
    lr: float = 1e-3
    warmup: int = 10
    weight_decay: float = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    given = parser.parse_args()
    torch.set_num_threads(1)
    make(Settings(steps=given.steps), given.out)


def make(settings: Settings, out: Path) -> None:
    """Start from micro-llava, learn, and write model, processor and card."""
    began = time.process_time()
    torch.manual_seed(settings.seed)
    hf.utils.logging.set_verbosity_error()
    old = llava.load(llava.Config(weights="micro-llava", dtype="float32"))
    model, processor = start(old)
    vlm = Vlm(model, processor, name="micro-qwen2-vl", max_length=512)
    vlm.requires_grad_(True)
    trained = list(vlm.parameters())
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98))
    shown = 0.0
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * lr_factor(step, settings)
        loss = vlm.answer_loss(vlm.collate([vlm.preprocess(e, True) for e in conversations(settings, step)]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        shown += loss.item()
        if (step + 1) % 25 == 0:
            print(f"{step + 1} loss {shown / 25:.3f} {(time.process_time() - began) / 60:.1f} min", flush=True)
            shown = 0.0
    vlm.requires_grad_(False).eval()
    model.save_pretrained(out)
    processor.save_pretrained(out)
    (out / "README.md").write_text(card(vlm, settings, (time.process_time() - began) / 60))
    print((out / "README.md").read_text(), flush=True)


def conversations(settings: Settings, step: int) -> list[Example]:
    """About new plain scenes; by seed and step alone."""
    index = np.arange(step * settings.batch, (step + 1) * settings.batch)
    world = scenes.of_anything(settings.seed, "qwen2-vl", index, pairs=scenes.SEEN, shares=coin.SHARES)
    return micro_llava.examples(world, micro_llava.Settings(), random.Random(step))


def start(old: Llava) -> tuple[Any, Any]:
    """The network before it learns, and its processor."""
    tokenizer = old.tokenizer
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": list(SPECIAL)})
    tokenizer.bos_token, tokenizer.model_max_length = None, 512
    inner = getattr(tokenizer, "_tokenizer", None)
    if inner is not None:  # the template says how a text begins
        from tokenizers import processors

        inner.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(list(SPECIAL))))
    was, tower = old.model.config.text_config, old.model.config.vision_config
    half = was.hidden_size // was.num_attention_heads // 2
    wide = (half - half // 4) // 2
    text = {
        **{name: getattr(was, name) for name in TEXT},
        "vocab_size": len(tokenizer),
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [half - 2 * wide, wide, wide],
            "rope_theta": was.rope_parameters["rope_theta"],
        },
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = hf.Qwen2VLConfig(
        text_config=text,
        vision_config={
            "depth": tower.num_hidden_layers - 1,  # LLaVA takes the last layer but one
            "embed_dim": tower.hidden_size,
            "hidden_size": was.hidden_size,
            "num_heads": tower.num_attention_heads,
            "mlp_ratio": tower.intermediate_size // tower.hidden_size,
            "patch_size": tower.patch_size,
            "spatial_merge_size": 1,
            "temporal_patch_size": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    model = hf.Qwen2VLForConditionalGeneration(config)
    model.generation_config = hf.GenerationConfig(
        do_sample=False, eos_token_id=ids["<|im_end|>"], pad_token_id=tokenizer.pad_token_id
    )
    missing = model.load_state_dict(translated(old, model), strict=False).unexpected_keys
    assert not missing, missing
    pixels = tower.image_size**2
    looks = {
        "patch_size": tower.patch_size,
        "merge_size": 1,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": pixels, "longest_edge": pixels},
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
    processor = hf.Qwen2VLProcessor(
        hf.Qwen2VLImageProcessor(**looks), tokenizer, hf.Qwen2VLVideoProcessor(**looks), chat_template=TEMPLATE
    )
    return model, processor


TEXT = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)
"""Settings of the language model that both have."""
BLOCKS = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Parts of a block of CLIP's tower -> of Qwen2-VL's."""


def translated(old: Llava, new: Any) -> dict[str, Tensor]:
    """micro-llava's weights under Qwen2-VL's names; of new tokens, the end mark has the old one's."""
    state, found = old.model.state_dict(), {}
    for name, tensor in state.items():
        if name.startswith("model.language_model.layers.") or name == "model.language_model.norm.weight":
            found[name] = tensor
    for name, start in new.state_dict().items():
        if name.endswith("_proj.bias") and "language_model" in name:
            found[name] = torch.zeros_like(start)
        if name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
            known = min(len(old.tokenizer) - len(SPECIAL), len(state[name]))
            rows = start.clone()
            rows[:known] = state[name][:known]
            rows[new.config.text_config.eos_token_id] = state[name][old.model.config.text_config.eos_token_id]
            found[name] = rows
    tower = "model.vision_tower."
    patches = state[f"{tower}embeddings.patch_embedding.weight"]
    found["model.visual.patch_embed.proj.weight"] = patches[:, :, None].repeat(1, 1, 2, 1, 1) / 2
    for i in range(new.config.vision_config.depth):
        theirs, ours = f"{tower}encoder.layers.{i}.", f"model.visual.blocks.{i}."
        for kind in ("weight", "bias"):
            for name, there in BLOCKS.items():
                found[f"{ours}{there}.{kind}"] = state[f"{theirs}{name}.{kind}"]
            three = [state[f"{theirs}self_attn.{one}_proj.{kind}"] for one in "qkv"]
            found[f"{ours}attn.qkv.{kind}"] = torch.cat(three)
    for kind in ("weight", "bias"):
        for i, layer in ((0, "linear_1"), (2, "linear_2")):
            found[f"model.visual.merger.mlp.{i}.{kind}"] = state[f"model.multi_modal_projector.{layer}.{kind}"]
    return found


def card(vlm: Vlm, settings: Settings, minutes: float) -> str:
    """What it is, how it was made, and what it can do before anything is learned."""
    size = sum(p.numel() for p in vlm.model.parameters())
    probed: Any = vlm
    rows = [
        f"| {kind} | {share:.1f} |"
        for kind, (share, _) in micro_llava.probe(probed, micro_llava.Settings(), 100).items()
    ]
    return "\n".join(
        [
            "# micro-qwen2-vl",
            "",
            f"A Qwen2-VL of {size / 1e6:.2f} million parameters, started from micro-llava's blocks and made by",
            f"`python tools/micro_qwen2_vl.py` in {minutes:.1f} minutes of processor time on",
            f"{settings.steps * settings.batch:,} conversations.",
            "",
            "Right word for word (%) on 100 new plain scenes, as in micro-llava's card:",
            "",
            "| question | right |",
            "|---|---|",
            *rows,
            "",
            *(f"- {key}: {value}" for key, value in asdict(settings).items()),
            "",
        ]
    )


if __name__ == "__main__":
    main()
