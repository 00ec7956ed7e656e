"""A tiny pair of CLIP and CLAP, and a stream of the four kinds of audio-visual tasks, for tests."""

from __future__ import annotations

import numpy as np
import torch
from tiny_clip import tiny_config, tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import ClapConfig, ClapModel, CLIPModel, PreTrainedTokenizerFast

from perdure.models.clap import Clap, FrontEnd
from perdure.models.clip import Clip
from perdure.models.clip.tokens import Tokenizer as ClipTokenizer
from perdure.types import Example, Examples, Stream, Task

SEGMENTS, SIZE, RATE = 3, 16, 32000
WORDS = ["<pad>", "is", "it", "loud", "red"]
SETTINGS = {
    "shallow_blocks": (0,),
    "mid_blocks": (1,),
    "deep_blocks": (2, 3),
    "latents": 2,
    "adapter_reduction": 4,
    "mid_length": 4,
    "codebook": 8,
    "generator_heads": 2,
    "generator_depth": 2,
    "deep_length": 2,
    "mask_dim": 8,
    "mask_heads": 2,
    "epochs": 1,
    "lr": 1e-3,
}
"""PHP in the tiny towers' sizes."""


def clip() -> Clip:
    """Four vision blocks of width 32, images of 16 pixels in 2 x 2 patches."""
    config = tiny_config(context=16)
    config.vision_config.num_hidden_layers, config.vision_config.hidden_size = 4, 32
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config)
        scaled(model)
    return Clip(model, tokenizer=ClipTokenizer(tiny_tokenizer(), context_length=16))


def clap(**audio) -> Clap:
    """Four audio blocks: 256 tokens of width 8, then 64 of width 16."""
    settings = {
        "spec_size": 64,
        "num_mel_bins": 16,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "depths": [2, 2],
        "num_attention_heads": [2, 2],
        "window_size": 4,
        "num_hidden_layers": 2,
        "projection_dim": 24,
    }
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 40, "max_position_embeddings": 20, "projection_dim": 24}
    config = ClapConfig(audio_config=settings | audio, text_config=text, projection_dim=24)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = ClapModel(config)
        scaled(model)
    return Clap(model, tokenizer=clap_tokenizer(), front=FrontEnd(mels=16))


def scaled(model: torch.nn.Module) -> None:
    """Weights large enough for features to differ clearly."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)


def clap_tokenizer() -> PreTrainedTokenizerFast:
    """Letters as tokens."""
    letters = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    inner = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=18, **names)


def example(name: str, target, rng: np.random.Generator, **more) -> Example:
    """Frames of a color and a tone, each second another."""
    colors = rng.integers(0, 256, (SEGMENTS, 1, 1, 3))
    frames = (colors + rng.integers(-9, 10, (SEGMENTS, SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8)
    time = np.arange(RATE) / RATE
    tones = [np.sin(2 * np.pi * f * time) for f in rng.uniform(100, 4000, SEGMENTS)]
    wave = (0.3 * np.stack(tones)).astype(np.float32)
    return Example(id=name, inputs={"frames": list(frames), "wave": wave, **more}, target=target)


def masks(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    return list(rng.random((count, SIZE, SIZE)) > 0.5)


def task(kind: str, index: int, *, train: int = 4, test: int = 3) -> Task:
    """One tiny task of a kind."""
    rng = np.random.default_rng(index)
    facts = {"segments": SEGMENTS, "clip_seconds": 2.0, "mask_size": SIZE}

    def made(split: str, n: int) -> Examples:
        items = []
        for i in range(n):
            name, more = f"{kind}/{split}/{i}", {}
            match kind:
                case "localize-events":
                    target = [(i + s) % 3 for s in range(SEGMENTS)]
                case "parse-video":
                    target = {"labels": [i % 3], "audio": [[i % 3, 0, 2]], "visual": [[i % 3, 1, 3]]}
                case "answer":
                    target, more = {"answer": i % 2, "type": ["Audio", "Counting"]}, {"question": [1, 2, 3 + i % 2, 0]}
                case "segment":
                    target = masks(rng, 1 if split == "train" else SEGMENTS)
                case _:
                    target = i % 3
            items.append(example(name, target, rng, **more))
        return Examples.of(items)

    names = {"answer": ("yes", "no")}.get(kind, ("cat", "dog", "photo"))
    if kind == "answer":
        facts["vocabulary"] = WORDS
    metrics = ("accuracy",) if kind == "classify" else ("score",)
    parts = {"train": made("train", train), "test": made("test", test)}
    return Task(index=index, name=kind, kind=kind, candidates=names, facts=facts, metrics=metrics, **parts)  # type: ignore


def stream(*kinds: str, **sizes: int) -> Stream:
    """One task of each kind, in this order; the task's name is known."""
    return Stream(
        name="tiny audio-visual",
        tasks=tuple(task(kind, i, **sizes) for i, kind in enumerate(kinds)),
        shared_candidates=False,
        task_revealed=True,
    )


ALL = ("localize-events", "parse-video", "answer", "segment")
