"""A tiny random OPT with a byte tokenizer, on disk, and a captioner before it: real models, a few thousand weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2Tokenizer, OPTConfig, OPTForCausalLM


def tiny_llm(folder: Path, *, positions: int = 64) -> Path:
    """A complete Hugging Face folder of an OPT of two layers; one token a byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    special = ["<s>", "<pad>", "</s>"]
    vocabulary = {entry: i for i, entry in enumerate([*special, *letters])}
    names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "</s>"}
    GPT2Tokenizer(vocab=vocabulary, merges=[], **names).save_pretrained(folder)
    settings = {"vocab_size": len(vocabulary), "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32}
    settings |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": positions}
    config = OPTConfig(**settings, pad_token_id=1, bos_token_id=2, eos_token_id=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OPTForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder
