"""Pretrains micro-clap on microworld's sounds and their captions; `pretrain_micro.py micro-clap` calls `make`.

Knows seconds of sound, sentences about them, and the contrastive loop. A second holds one sound or two, or silence; it
is heard whole, not repeated, in 32 frames of 32 mel bands. Ten of the 80 pairs of shape and color are never heard.
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
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

from perdure.data.microworld import scenes, sound, words
from perdure.models.clap import Clap, FrontEnd

TEMPLATE = "The sounds of {}"
CONTEXT = 20
HELD_OUT = frozenset((shape, (3 * shape + 4) % len(scenes.COLORS)) for shape in range(len(scenes.SHAPES)))
"""(shape, color) that pretraining never hears: one of the two colors of each shape among the localized events."""
FRONT = FrontEnd(mels=32, hop=1024, longest=1.0)
OPENINGS = ("The sounds of", "the sound of", "sounds of", "this is", "")
SILENCE = ("background", "silence", "no sound", "background noise")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the pretraining."""

    seed: int = 0
    steps: int = 1000
    pool: int = 6000
    """Seconds of sound made once."""
    batch: int = 128
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05
    patch: int = 4
    width: int = 32
    depths: tuple[int, ...] = (2, 2)
    window: int = 4
    text_width: int = 64
    text_layers: int = 2
    dim: int = 96
    shares: tuple[float, float, float] = (0.6, 0.3, 0.1)
    """Of seconds with one sound, with two, and with none."""
    gain: float = 6.0
    """Each spectrogram is made louder or softer by up to so many decibels."""


def make(settings: Settings, out: Path) -> None:
    """Pretrain, and write model, tokenizer and card."""
    started = time.process_time()
    clap = pretrain(settings)
    save(clap, out)
    (out / "README.md").write_text(describe(settings, clap, (time.process_time() - started) / 60))
    print((out / "README.md").read_text(), flush=True)


def pretrain(settings: Settings) -> Clap:
    """A CLAP trained from nothing by the symmetric contrastive loss."""
    torch.manual_seed(settings.seed)
    tokenizer = word_tokenizer()
    clap = Clap(ClapModel(_config(settings, len(tokenizer))), tokenizer=tokenizer, front=FRONT)
    mels, sentences, true = _pool(settings, tokenizer)
    norm = clap.tower.batch_norm
    norm.running_mean.copy_(mels.mean((0, 1, 2)))
    norm.running_var.copy_(mels.var((0, 1, 2)))
    clap.requires_grad_(True)  # the mode stays that of evaluation: no dropout, fixed statistics
    weights = [p for p in clap.parameters() if p.ndim > 1]
    rest = [p for p in clap.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98))
    draw = torch.Generator().manual_seed(settings.seed)
    shown = 0.0
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * lr_factor(step, settings)
        rows = torch.randint(len(mels), (settings.batch,), generator=draw)
        loss = _loss(clap, *_batch(rows, mels, sentences, true, settings, draw))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clap.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for scale in (clap.model.logit_scale_a, clap.model.logit_scale_t):
                scale.clamp_(max=math.log(100))
        shown += loss.item()
        if (step + 1) % 100 == 0:
            print(f"{step + 1} loss {shown / 100:.3f} scale {clap.raw_scale.exp():.1f}", flush=True)
            shown = 0.0
    return clap.requires_grad_(False)


def zero_shot(clap: Clap, what: str, *, seed: int = 0, each: int = 10) -> tuple[float, float]:
    """Accuracy in percent over seconds with one sound, of heard and of held-out pairs.

    `what`: "shape" (10 names), "color" (8), "pair" (80).
    """
    pairs = np.asarray([(s, c) for s in range(len(scenes.SHAPES)) for c in range(len(scenes.COLORS))])
    rows = np.tile(np.arange(len(pairs)), each)
    world = scenes.of_anything(seed, "sound/validation", np.arange(len(rows)), shares=(1, 0, 0))
    world.shape[:, 0], world.color[:, 0] = pairs[rows].T
    names = {
        "shape": list(scenes.SHAPES),
        "color": [f"something {color}" for color in scenes.COLORS],
        "pair": [f"{scenes.COLORS[c]} {scenes.SHAPES[s]}" for s, c in pairs],
    }[what]
    truth = {"shape": pairs[rows, 0], "color": pairs[rows, 1], "pair": rows}[what]
    texts = F.normalize(clap.encode_texts([TEMPLATE.format(name) for name in names]), dim=1)
    with torch.inference_mode():
        features = clap.encode_audio(_mels(world, np.ones((len(rows), scenes.MOST, 1), bool)))
    right = (features @ texts.T).argmax(1).numpy() == truth
    held_out = np.asarray([tuple(pair) in HELD_OUT for pair in pairs.tolist()])[rows]
    return 100 * right[~held_out].mean(), 100 * right[held_out].mean()


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One id a word, in RoBERTa's frame."""
    listed = ["<s>", "<pad>", "</s>", "<unk>"]
    more = " ".join((*OPENINGS, *SILENCE, "something heard sounding")).lower().split()
    listed += sorted({*words.vocabulary(), *more})
    vocabulary = {word: i for i, word in enumerate(listed)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=CONTEXT, model_input_names=["input_ids", "attention_mask"], **names
    )


def save(clap: Clap, out: Path) -> None:
    """A folder that plain transformers loads; weights in float16."""
    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(clap.model).to(torch.float16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    (out / "generation_config.json").unlink(missing_ok=True)  # it generates nothing
    word_tokenizer().save_pretrained(out)
    # transformers 5 writes a class name that older versions do not know; this one is known to all.
    settings = json.loads((out / "tokenizer_config.json").read_text())
    settings.pop("backend", None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    ClapFeatureExtractor(
        feature_size=FRONT.mels,
        sampling_rate=FRONT.rate,
        hop_length=FRONT.hop,
        max_length_s=1,
        fft_window_size=FRONT.window,
        frequency_min=FRONT.lowest,
        frequency_max=FRONT.highest,
        truncation="rand_trunc",
    ).save_pretrained(out)


def describe(settings: Settings, clap: Clap, minutes: float) -> str:
    """The model card."""
    rows = []
    for what, count in (("shape", len(scenes.SHAPES)), ("color", len(scenes.COLORS)), ("pair", 80)):
        heard, held_out = zero_shot(clap, what)
        rows.append(f"| {what} | {100 / count:.1f} | {heard:.1f} | {held_out:.1f} |")
    size = sum(p.numel() for p in clap.model.parameters())
    lines = [
        "# micro-clap",
        "",
        f"A CLAP of {size / 1e6:.2f} million parameters for the sounds of microworld, perdure's generated world: a",
        "shape has a timbre, a color a pitch. It is for demos, tests and finding bugs; it knows nothing of real",
        "sounds.",
        "",
        f"Made by `python tools/pretrain_micro.py micro-clap` in {minutes:.1f} minutes of processor time,",
        "contrastively, on seconds of sound with their captions. It hears one second as 32 frames of 32 mel bands, and",
        "does not repeat it to ten seconds. Ten of the 80 pairs of shape and color were held out.",
        "",
        "## Zero-shot accuracy (%)",
        "",
        f'800 validation seconds with one sound each, template "{TEMPLATE}".',
        "",
        "| what | chance | heard pairs | held-out pairs |",
        "|---|---|---|---|",
        *rows,
        "",
        "## Settings",
        "",
        *(f"- {key}: {value}" for key, value in asdict(settings).items()),
        f"- logit scale at the end: {clap.raw_scale.exp().item():.1f}",
        "",
    ]
    return "\n".join(lines)


# -- the pool -----------------------------------------------------------------------------------------------


def _pool(settings: Settings, tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, list[list[str]], Tensor]:
    """Log-mels ``[pool, 1, frames, bands]``, four sentences about each, and which words are true ``[pool, words]``."""
    n = settings.pool
    one, two, none = settings.shares
    world = scenes.of_anything(settings.seed, "sound/pretraining", np.arange(n), shares=(one + none, two, 0))
    rng = np.random.default_rng(settings.seed)
    heard_pairs = [(s, c) for s in range(10) for c in range(8) if (s, c) not in HELD_OUT]
    drawn = np.asarray(heard_pairs)[rng.integers(0, len(heard_pairs), (n, scenes.MOST))]
    world.shape[:], world.color[:] = drawn[..., 0], drawn[..., 1]
    silent = rng.random(n) < none / (one + none)
    silent &= world.count == 1
    heard = np.repeat(~silent[:, None, None], scenes.MOST, axis=1)
    sentences, facts = [], []
    for row in range(n):
        things = [] if silent[row] else [(o.color, o.shape) for o in world.objects(row)]
        sentences.append([_sentence(things, rng) for _ in range(4)])
        facts.append(" ".join(f"{color} {shape}" for color, shape in things) or "silence")
    return _mels(world, heard), sentences, _meaning(facts)


def _mels(world: scenes.Scenes, heard: np.ndarray) -> Tensor:
    parts = []
    for start in range(0, len(world), 256):
        rows = slice(start, start + 256)
        waves = torch.from_numpy(sound.waves(world.select(rows), heard[rows]))
        parts.append(FRONT(waves, seconds=1.0))
    return torch.cat(parts)


def _sentence(things: list[tuple[str, str]], rng: np.random.Generator) -> str:
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    if not things:
        return f"{opening} {SILENCE[rng.integers(len(SILENCE))]}".strip()
    said = []
    for color, shape in things if rng.random() < 0.5 else things[::-1]:
        kind, article = rng.random(), "a " if rng.random() < 0.5 else ""
        said.append(f"something {color}" if kind < 0.15 else f"{article}{shape if kind < 0.4 else f'{color} {shape}'}")
    if len(said) > 1 and rng.random() < 0.2:
        said = said[:1]
    return f"{opening} {' and '.join(said)}".strip()


def _meaning(texts: list[str]) -> Tensor:
    """``[texts, words]``: which canonical words a text says; all words of silence are one."""
    canonical = (*scenes.SHAPES, *scenes.COLORS, "silence")
    said = [set(text.lower().split()) for text in texts]
    said = [words_of | {"silence"} if words_of & {"background", "no"} else words_of for words_of in said]
    return torch.tensor([[float(word in words_of) for word in canonical] for words_of in said])


def _batch(
    rows: Tensor, mels: Tensor, sentences: list[list[str]], true: Tensor, settings: Settings, draw: torch.Generator
) -> tuple[Tensor, list[str], Tensor]:
    """Spectrograms turned in time and in gain, one sentence for each, and which sentence is true of which."""
    picked = torch.randint(4, (len(rows),), generator=draw).tolist()
    texts = [sentences[row][which] for row, which in zip(rows.tolist(), picked)]
    gain = (2 * torch.rand(len(rows), 1, 1, 1, generator=draw) - 1) * settings.gain
    turn = int(torch.randint(mels.shape[2], (1,), generator=draw))
    fits = (1 - true[rows]) @ _meaning(texts).T == 0
    return mels[rows].roll(turn, 2) + gain, texts, fits


def _loss(clap: Clap, mels: Tensor, texts: list[str], also_true: Tensor) -> Tensor:
    """Symmetric cross-entropy; a sentence that is also true of another second is not held against it."""
    assert clap.tokenizer is not None
    encoded = clap.tokenizer(texts, padding=True, return_tensors="pt")
    output = clap.model.text_model(encoded["input_ids"], attention_mask=encoded["attention_mask"])
    said = F.normalize(clap.model.text_projection(output.pooler_output), dim=1)
    heard = F.normalize(clap.encode_audio(mels), dim=1)
    others = also_true & ~torch.eye(len(texts), dtype=torch.bool)
    cosines, truth = (heard @ said.T).masked_fill(others, -1e3), torch.arange(len(texts))
    by_sound = F.cross_entropy(cosines * clap.model.logit_scale_a.exp(), truth)
    return (by_sound + F.cross_entropy(cosines.T * clap.model.logit_scale_t.exp(), truth)) / 2


def _config(settings: Settings, vocabulary: int) -> ClapConfig:
    audio = {
        "spec_size": settings.patch * 2 * settings.window,
        "num_mel_bins": FRONT.mels,
        "patch_size": settings.patch,
        "patch_stride": [settings.patch, settings.patch],
        "patch_embeds_hidden_size": settings.width,
        "hidden_size": settings.width * 2 ** (len(settings.depths) - 1),
        "depths": list(settings.depths),
        "num_hidden_layers": len(settings.depths),
        "num_attention_heads": [2 * 2**i for i in range(len(settings.depths))],
        "window_size": settings.window,
        "projection_dim": settings.dim,
        "drop_path_rate": 0.0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    text = {
        "vocab_size": vocabulary,
        "hidden_size": settings.text_width,
        "intermediate_size": 4 * settings.text_width,
        "num_hidden_layers": settings.text_layers,
        "num_attention_heads": settings.text_width // 32,
        "max_position_embeddings": CONTEXT + 2,
        "projection_dim": settings.dim,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return ClapConfig(audio_config=audio, text_config=text, projection_dim=settings.dim)
