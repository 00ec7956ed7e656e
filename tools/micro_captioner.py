"""Pretrains micro-captioner's language model: a tiny OPT that has read captions of microworld, and nothing else.

Knows its settings, its tokenizer and the loop. A document is the five captions of one plain scene, a line each, so that
what stands before a caption says something about it: a prefix takes that place later. Held-out combinations and
synonyms are not read. Then ClipCap learns a mapper from micro-clip's features, so that adapting can be tried at once.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from micro_pretraining import lr_factor
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from torch.nn import functional as F
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from perdure.data.microworld import scenes, words
from perdure.models.captioner.convert import save_mapper
from perdure.runtime import Runtime
from perdure.settings.config import Named

PAD, START = 1, 2
"""As in OPT: `</s>` begins a text. A line break ends a caption."""
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "\n")
ROOM = 128
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the language model and its pretraining."""

    seed: int = 3
    steps: int = 1300
    documents: int = 30_000
    """Scenes whose captions are read; each step draws from them anew, in a new order."""
    batch: int = 32
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.1
    width: int = 128
    layers: int = 3
    heads: int = 4


MAPPER = {"dim": 96, "prefix": 8, "clip_prefix": 4, "layers": 2, "heads": 4}
CLIPCAP = {"lr": 1e-3, "warmup": 100, "epochs": 2, "most_words": 40}
"""As in the recipe clipcap/microworld."""


def make(settings: Settings, out: Path) -> None:
    """Pretrain, and write model, tokenizer and card."""
    began = time.process_time()
    tokenizer = word_tokenizer()
    model = pretrain(settings, tokenizer)
    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.float16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    # transformers 5 writes a class name that older versions do not know; this one is known to all.
    kept = json.loads((out / "tokenizer_config.json").read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    kept.pop("backend", None)
    (out / "tokenizer_config.json").write_text(json.dumps(kept, indent=2) + "\n")
    add_mapper(out)
    minutes = (time.process_time() - began) / 60
    (out / "README.md").write_text(card(settings, minutes, model, tokenizer))
    print((out / "README.md").read_text(), flush=True)


def add_mapper(out: Path) -> None:
    """ClipCap's mapper for micro-clip, learned on 2000 plain scenes, in float16 beside the language model."""
    data = {"name": "microworld", "content": "captions", "train_scenes": 2000}
    stream = Named(place="streams", name="captions", settings={"train": data, "tests": [data]}).build()
    clip = Named(place="models", name="clip", settings={"weights": "micro-clip"}).build()
    captioner = Named(place="models", name="captioner", settings={"llm": str(out), "seed": 0, **MAPPER}).build()
    method = Named(place="methods", name="clipcap", settings=CLIPCAP).build(clip=clip, captioner=captioner)
    runtime = Runtime(device="cpu", quiet=True)
    runtime.task = 0
    method.learn(stream.tasks[0], runtime)
    save_mapper(out, captioner.mapper.half())


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One id a word or sign; a line break has one too."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words.vocabulary()])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]|\n"), "removed", invert=True)
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # spaces between words, none before a comma
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def pretrain(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> OPTForCausalLM:
    """A language model trained from nothing to go on with the captions of a scene."""
    torch.manual_seed(settings.seed)
    model = OPTForCausalLM(_config(settings, len(tokenizer))).train()
    read = documents(settings, tokenizer, "pretraining", settings.documents)
    print(f"{len(read)} documents, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n]
    plain = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(settings.seed)
    began, shown = time.process_time(), 0.0
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * lr_factor(step, settings)
        chosen = torch.randint(len(read), (settings.batch,), generator=generator).tolist()
        loss = next_word(model, batch([read[i] for i in chosen], generator)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        shown += loss.item()
        if (step + 1) % 100 == 0:
            print(f"{step + 1} loss {shown / 100:.3f} {time.process_time() - began:.0f} s", flush=True)
            shown = 0.0
    return model.eval()


def documents(settings: Settings, tokenizer: PreTrainedTokenizerFast, split: str, count: int) -> list[list[list[int]]]:
    """The captions of each scene as ids ``[start, words..., line break]``."""
    found = []
    for begin in range(0, count, 2000):
        index = np.arange(begin, min(begin + 2000, count))
        for said in words.captions(scenes.of_anything(settings.seed, split, index, pairs=scenes.SEEN)):
            found.append([[START, *ids] for ids in tokenizer([f"{text}\n" for text in said])["input_ids"]])
    return found


def batch(chosen: list[list[list[int]]], generator: torch.Generator) -> Tensor:
    """Ids ``[documents, words]``: the captions of each in a new order, cut to the model's room."""
    rows = []
    for captions in chosen:
        order = torch.randperm(len(captions), generator=generator).tolist()
        rows.append([i for k in order for i in captions[k]][:ROOM])
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids


def next_word(model: OPTForCausalLM, ids: Tensor) -> Tensor:
    """Cross-entropy of each real word after the first; what begins a caption is no surprise and is left out."""
    known = ids != PAD
    logits = model(input_ids=ids, attention_mask=known.long()).logits[:, :-1]
    asked = ids[:, 1:].masked_fill(~known[:, 1:] | (ids[:, 1:] == START), IGNORED)
    return F.cross_entropy(logits.transpose(1, 2), asked, ignore_index=IGNORED, reduction="none")[asked != IGNORED]


@torch.no_grad()
def surprise(model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: Settings, place: int) -> float:
    """Perplexity of a caption's words where `place` others of its scene stand before it."""
    found = []
    for captions in documents(settings, tokenizer, "validation", 500):
        ids = torch.tensor([[i for one in captions[: place + 1] for i in one]])
        found.append(next_word(model, ids)[-(len(captions[place]) - 1) :])
    return math.exp(float(torch.cat(found).mean()))


def card(settings: Settings, minutes: float, model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast) -> str:
    """The model card: what it is, how it was made, and what it knows."""
    size = sum(p.numel() for p in model.parameters())
    lines = [
        "# micro-captioner",
        "",
        f"An OPT of {size / 1e6:.2f} million parameters that has read captions of microworld, perdure's generated",
        "world. It is for demos, tests and finding bugs; it knows no other words.",
        "",
        f"Made by `python tools/pretrain_micro.py micro-captioner` in {minutes:.1f} minutes of processor time.",
        "A document is the five captions of one plain scene, a line each. Ten of the 40 combinations of shape",
        "and fill, and a list of synonyms, were held out. `mapper.safetensors` is what the recipe clipcap/microworld",
        "learns in a minute: micro-clip's feature of a picture to eight vectors that the captions go on from.",
        "",
        "## Perplexity of a word (500 validation scenes)",
        "",
        "| captions of the scene before it | perplexity |",
        "|---|---|",
        *(f"| {place} | {surprise(model, tokenizer, settings, place):.2f} |" for place in range(3)),
        "",
        "## Settings",
        "",
        *(f"- {key}: {value}" for key, value in asdict(settings).items()),
        "",
    ]
    return "\n".join(lines)


def _config(settings: Settings, vocabulary: int) -> OPTConfig:
    return OPTConfig(
        vocab_size=vocabulary,
        hidden_size=settings.width,
        word_embed_proj_dim=settings.width,
        ffn_dim=4 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=ROOM,
        dropout=0.0,
        layerdrop=0.0,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=START,
    )
