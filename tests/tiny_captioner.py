"""A tiny random OPT with a byte tokenizer, on disk, a captioner before it, and streams of captions and of retrieval."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import GPT2Tokenizer, OPTConfig, OPTForCausalLM

from perdure.images import NamedImage
from perdure.models.captioner import Captioner, Config, load
from perdure.types import Example, Examples, Stream, Task


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


SIZES = {"prefix": 3, "clip_prefix": 2, "layers": 1, "heads": 2, "dim": 24, "seed": 0}


@cache
def _loaded(**settings):
    with TemporaryDirectory() as folder:
        return load(Config(llm=str(tiny_llm(Path(folder))), **{**SIZES, **settings}))


def captioner(**settings: Any) -> Captioner:
    """Fresh copies of a captioner that was loaded from disk once."""
    return deepcopy(_loaded(**settings))


def picture(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (16, 16, 3)).astype(np.uint8)


def images(first: int, count: int) -> Examples:
    """Noise with two captions each."""
    words = ("cat", "dog", "photo", "a cat", "a dog")
    return Examples.of(
        [
            Example(
                id=f"{i}.png", inputs={"image": picture(i)}, target=[f"{words[i % 5]} {i}", f"a photo {words[i % 5]}"]
            )
            for i in range(first, first + count)
        ]
    )


def caption_stream(tasks: int = 2) -> Stream:
    made = [
        Task(
            index=i,
            name=f"t{i}",
            kind="caption",
            train=images(10 * i, 3),
            test=images(100 + 10 * i, 3),
            metrics=("cider", "bleu_4", "rouge_l"),
        )
        for i in range(tasks)
    ]
    return Stream(name="captions", tasks=tuple(made), shared_candidates=False)


def retrieval_stream(tasks: tuple[str, ...] = ("text", "image"), gallery: int = 4) -> Stream:
    """A task by what is asked with."""
    made = []
    for i, asked_with in enumerate(tasks):
        shown = images(10 * i, gallery)
        texts = tuple(e.target[0] for e in shown)
        if asked_with == "image":
            test, candidates = shown.relabel(lambda said, texts=texts: [texts.index(said[0])]), texts
        else:
            candidates = tuple(NamedImage(e.id, e.inputs["image"]) for e in shown)
            test = Examples.of([Example(id=f"q{j}", inputs={"text": text}, target=j) for j, text in enumerate(texts)])
        task = Task(index=i, name=asked_with, kind="retrieve", candidates=candidates, test=test, train=test[:1])
        made.append(replace(task, metrics=("recall_1", "recall_mean", "median_rank")))
    return Stream(name="retrieval", tasks=tuple(made), shared_candidates=False)
