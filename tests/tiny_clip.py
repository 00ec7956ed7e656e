"""Tiny random CLIPs on disk for tests: real models, real tokenizer, a few thousand weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

MERGES = ["a t</w>", "c at</w>", "o g</w>", "d og</w>", "p h", "ph o", "pho t", "phot o</w>"]


def tiny_config(*, vocabulary: int = 0, image_size: int = 16, context: int = 12) -> CLIPConfig:
    """Two layers and two heads a tower, 24 joint dimensions; `vocabulary` 0: that of `tiny_tokenizer`."""
    vocabulary = vocabulary or len(tiny_tokenizer())
    shared = {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 24}
    text = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": context, "pad_token_id": 0}
    text |= {"vocab_size": vocabulary, "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    vision = {"hidden_size": 48, "intermediate_size": 96, "image_size": image_size, "patch_size": 8}
    return CLIPConfig(projection_dim=24, text_config=text | shared, vision_config=vision | shared)


def tiny_model(**settings) -> CLIPModel:
    """A random CLIPModel whose features differ clearly from image to image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(tiny_config(**settings)).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def tiny_tokenizer() -> CLIPTokenizer:
    """Bytes, and merges for "cat", "dog" and "photo"."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    entries = [*letters, *(a + "</w>" for a in letters), *(m.replace(" ", "") for m in MERGES)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    pairs = [tuple(m.split()) for m in MERGES]
    return CLIPTokenizer(vocab={e: i for i, e in enumerate(entries)}, merges=pairs)


def tiny_clip(folder: Path, **settings) -> Path:
    """A complete Hugging Face folder of a tiny CLIP."""
    model = tiny_model(**settings)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    size = model.config.vision_config.image_size
    facts = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}, "resample": 3}
    facts |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder
