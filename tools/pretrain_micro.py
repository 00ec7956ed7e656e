"""Pretrains one of the micro models on microworld and writes it, with its card, into the package.

    python tools/pretrain_micro.py micro-clip
    python tools/pretrain_micro.py micro-clip-reward --steps 200 --out DIR     # a quick try elsewhere
    python tools/pretrain_micro.py micro-captioner                             # see micro_captioner.py
    python tools/pretrain_micro.py micro-clap                                  # see micro_clap.py
    python tools/pretrain_micro.py micro-vit                                   # see micro_vit.py
    python tools/pretrain_micro.py micro-llava                                 # an hour; see micro_llava.py

Knows the settings, the contrastive loop and the tokenizer. Training sees scenes of the split "pretraining", close ones
of one object and wide ones of one to three, without the held-out combinations and synonyms; mostly `plain`, a few
`natural`; no test scene and none of the shifts.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import micro_captioner
import micro_clap
import micro_llava
import micro_vit
import numpy as np
import torch
from micro_pretraining import lr_factor, pictures
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

from perdure.data.microworld import scenes, styles, words

MODELS = Path(__file__).resolve().parents[1] / "src" / "perdure" / "models" / "micro"
TEMPLATE = "a photo of a {}."
CONTEXT = 48
MEAN, DEVIATION = (0.2, 0.2, 0.2), (0.2, 0.2, 0.2)
PART = 2000
"""Scenes that are rendered together."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Settings of one contrastive pretraining."""

    seed: int
    steps: int
    pool: int = 60_000
    """Scenes rendered once; each step draws from them anew, with one of five captions each."""
    batch: int = 128
    lr: float = 1e-3
    scale_lr: float = 1e-2
    """Learning rate of the logarithm of the logit scale. It is kept above a line from log 14 to log 100, its bound,
    which it meets after three fifths of the steps."""
    warmup: int = 200
    weight_decay: float = 0.1
    patch: int = 8
    width: int = 128
    layers: int = 4
    text_width: int = 96
    text_layers: int = 2
    dim: int = 96
    shares: tuple[float, float, float] = (0.6, 0.25, 0.15)
    """Shares of scenes of one, two and three objects among the wide ones."""
    close: float = 0.5
    """Share of scenes with one object that fills the picture."""
    natural: float = 0.1
    """Share of scenes in the look `natural`, of severity 1 to 5."""
    cropped: float = 0.7
    """Share of close pictures that are cut at random in a step, to a part of the area from `least` to 1, made 32 x 32:
    none at first, from the middle of training on as many as stated."""
    least: float = 0.08


SETTINGS = {
    "micro-clip": Clip(seed=2, steps=6500),
    "micro-clip-reward": Clip(seed=1, steps=11000, pool=120_000, natural=0.3),
    "micro-captioner": micro_captioner.Settings(),
    "micro-clap": micro_clap.Settings(),
    "micro-llava": micro_llava.Settings(),
    "micro-vit": micro_vit.Settings(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=sorted(SETTINGS))
    parser.add_argument("--steps", type=int, help="other number of steps than the settings'")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting")
    parser.add_argument("--out", type=Path, help="folder to write, default: inside the package")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    changes = {k: json.loads(v) for k, v in (pair.split("=", 1) for pair in given.set)}
    settings = replace(SETTINGS[given.name], **changes, **({"steps": given.steps} if given.steps else {}))
    out = given.out or MODELS / given.name
    for own in (micro_captioner, micro_clap, micro_llava, micro_vit):
        if isinstance(settings, own.Settings):
            own.make(settings, out)  # type: ignore[arg-type]
            return
    started = time.process_time()
    tokenizer = word_tokenizer()

    def keep(model: CLIPModel, steps: int) -> None:
        minutes = (time.process_time() - started) / 60
        save(model, out)
        (out / "README.md").write_text(card(given.name, settings, steps, minutes, model, tokenizer))
        print((out / "README.md").read_text(), flush=True)

    keep(pretrain(settings, tokenizer, every_thousand_steps=keep), settings.steps)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One id a word, `<|endoftext|>` last: pooling at the first end or at the largest id agree."""
    special = ["<|pad|>", "<|unknown|>", "<|startoftext|>"]
    listed = [*special, *words.vocabulary(), "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(listed)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace("_", " ")])
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    start, end = "<|startoftext|>", "<|endoftext|>"
    inner.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=start,
        eos_token=end,
        pad_token="<|pad|>",
        unk_token="<|unknown|>",
        model_max_length=CONTEXT,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
    )


def pretrain(
    settings: Clip, tokenizer: PreTrainedTokenizerFast, every_thousand_steps: Callable[[CLIPModel, int], None]
) -> CLIPModel:
    """A CLIP trained from nothing by the symmetric contrastive loss."""
    torch.manual_seed(settings.seed)
    model = CLIPModel(_config(settings, tokenizer)).train()
    images, ids, said_of, true_of, count, close = _pool(settings, tokenizer)
    alike = [torch.nonzero(count == n)[:, 0] for n in (1, 2, 3)]
    print(f"pool of {len(images)} scenes, {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    optimizer = torch.optim.AdamW(_groups(model, settings), betas=(0.9, 0.98))
    rates = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(settings.seed)
    started, shown = time.process_time(), 0.0
    for step in range(settings.steps):
        factor = lr_factor(step, settings)
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * factor
        # All scenes of a batch have equally many objects: counting alone tells nothing apart.
        which = torch.rand((), generator=generator) * sum(map(len, alike))
        some = alike[0] if which < len(alike[0]) else alike[1 if which < len(alike[0]) + len(alike[1]) else 2]
        rows = some[torch.randint(len(some), (settings.batch,), generator=generator)]
        said = torch.randint(ids.shape[1], (settings.batch,), generator=generator)
        share = settings.cropped * min(1.0, 2 * step / settings.steps)
        pictures = cropped(pixels(images[rows]), close[rows], share, settings.least, generator)
        loss = contrastive(model, pictures, ids[rows, said], fits(said_of[rows, said], true_of[rows]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            lowest = math.log(14) + (math.log(100) - math.log(14)) * min(1.0, step / (0.6 * settings.steps))
            model.logit_scale.clamp_(min=lowest, max=math.log(100))
        shown += loss.item()
        if (step + 1) % 200 == 0:
            scale = model.logit_scale.detach().exp().item()
            seconds = time.process_time() - started
            print(f"{step + 1} loss {shown / 200:.3f} scale {scale:.1f} {seconds:.0f} s", flush=True)
            shown = 0.0
        if (step + 1) % 1000 == 0 and step + 1 < settings.steps:
            every_thousand_steps(model.eval(), step + 1)
            model.train()
    return model.eval()


def contrastive(model: CLIPModel, images: Tensor, ids: Tensor, also_true: Tensor) -> Tensor:
    """Symmetric cross-entropy; a caption that is also true of another picture is not held against it."""
    out = model(pixel_values=images, input_ids=ids[:, : int((ids != 0).sum(1).max())])
    others = also_true & ~torch.eye(len(ids), dtype=torch.bool)
    logits = out.logits_per_image.masked_fill(others, -1e4)
    truth = torch.arange(len(ids))
    cross = torch.nn.functional.cross_entropy
    return (cross(logits, truth) + cross(logits.T, truth)) / 2


def fits(said: Tensor, true: Tensor) -> Tensor:
    """Whether each caption ``[captions, words]`` says only what is true of each picture ``[pictures, words]``.

    Returns ``[pictures, captions]``. Words, not who is what: enough for one object, an upper bound for more.
    """
    return (1 - true) @ said.T == 0


def pixels(images: Tensor) -> Tensor:
    """uint8 ``[images, h, w, 3]`` -> normalised ``[images, 3, h, w]``, as the image processor does."""
    mean, deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)
    return ((images.float() / 255 - mean) / deviation).permute(0, 3, 1, 2).contiguous()


def cropped(images: Tensor, close: Tensor, share: float, least: float, generator: torch.Generator) -> Tensor:
    """A `share` of the `close` pictures ``[images, 3, h, w]`` cut to a part of them: its area, `least` to 1, and its
    sides' ratio, 3/4 to 4/3 as for ImageNet, are drawn, and its place."""
    n = len(images)
    drawn = torch.rand(5, n, generator=generator)
    area = least + (1 - least) * drawn[0]
    ratio = (0.75 * (4 / 3 / 0.75) ** drawn[1]).sqrt()
    width, height = (area.sqrt() * ratio).clamp(max=1), (area.sqrt() / ratio).clamp(max=1)
    cut = close & (drawn[4] < share)
    width, height = (torch.where(cut, side, 1.0) for side in (width, height))
    at = torch.zeros(n, 2, 3)
    at[:, 0, 0], at[:, 1, 1] = width, height
    at[:, 0, 2], at[:, 1, 2] = (2 * drawn[2] - 1) * (1 - width), (2 * drawn[3] - 1) * (1 - height)
    grid = torch.nn.functional.affine_grid(at, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def zero_shot(model: CLIPModel, tokenizer, per_class: int, style: str = "plain") -> np.ndarray:
    """Share of right answers for each of the 40 classes ``[40]``, among all 40."""
    label = np.arange(len(scenes.CLASSES) * per_class) % len(scenes.CLASSES)
    world = scenes.of_classes(0, "validation", np.arange(len(label)), label, radii=scenes.CLOSE)
    images = torch.from_numpy(styles.pictures(world, style, 3))
    with torch.inference_mode():
        text = tokenizer([TEMPLATE.format(c) for c in scenes.CLASSES], padding=True, return_tensors="pt")
        text_features = model.get_text_features(**text).pooler_output
        features = [model.get_image_features(pixels(part)).pooler_output for part in images.split(256)]
    answers = (torch.cat(features) @ torch.nn.functional.normalize(text_features, dim=-1).T).argmax(1)
    right = answers.numpy() == label
    return np.asarray([right[label == c].mean() for c in range(len(scenes.CLASSES))])


def save(model: CLIPModel, out: Path) -> None:
    """A folder that plain transformers loads; weights in float16."""
    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.float16).save_pretrained(out)
    # A fresh one: a used tokenizer would save how it last padded.
    word_tokenizer().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    # transformers 5 writes a class name that older versions do not know; this one is known to all.
    settings = json.loads((out / "tokenizer_config.json").read_text())
    settings.pop("backend", None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    side = {"height": 32, "width": 32}
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=side, image_mean=list(MEAN), image_std=list(DEVIATION)
    ).save_pretrained(out)


def card(name: str, settings: Clip, done: int, minutes: float, model: CLIPModel, tokenizer) -> str:
    """The model card: what it is, how it was made, what it can do before anything is learned."""
    held_out = np.asarray([pair in scenes.HELD_OUT for pair in scenes.PAIRS])
    rows = []
    for style in styles.STYLES:
        found = 100 * zero_shot(model, tokenizer, 25, style)
        rows.append(f"| {style} | {found.mean():.1f} | {found[~held_out].mean():.1f} | {found[held_out].mean():.1f} |")
    size = sum(p.numel() for p in model.parameters())
    unfinished = f"**A snapshot after {done} of {settings.steps} steps; the learning rate had not yet come down.**"
    lines = [
        f"# {name}",
        "",
        *([unfinished, ""] if done < settings.steps else []),
        f"A CLIP of {size / 1e6:.2f} million parameters for 32 x 32 pictures of microworld, perdure's generated",
        "world. It is for demos, tests and finding bugs; it knows nothing of real pictures.",
        "",
        f"Made by `python tools/pretrain_micro.py {name}` in {minutes:.1f} minutes of processor time, contrastively,",
        f"on scenes with their captions, {100 * settings.close:.0f} % of one object that fills the picture;",
        f"{100 * settings.natural:.0f} % look `natural`, the others plain. Ten of the 40 combinations of shape and",
        "fill, and a list of synonyms, were held out. The nine shifted styles were not seen.",
        "",
        "## Zero-shot accuracy (%)",
        "",
        f'1000 validation pictures, 40 classes, template "{TEMPLATE}", severity 3; chance is 2.5.',
        "",
        "| style | all | seen combinations | held-out combinations |",
        "|---|---|---|---|",
        *rows,
        "",
        "## Settings",
        "",
        *(f"- {key}: {value}" for key, value in asdict(settings).items()),
        f"- logit scale at the end: {model.logit_scale.detach().exp().item():.1f}",
        "",
    ]
    return "\n".join(lines)


def _config(settings: Clip, tokenizer: PreTrainedTokenizerFast) -> CLIPConfig:
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": settings.text_width,
        "intermediate_size": 4 * settings.text_width,
        "num_hidden_layers": settings.text_layers,
        "num_attention_heads": settings.text_width // 32,
        "max_position_embeddings": CONTEXT,
        "projection_dim": settings.dim,
        "hidden_act": "gelu",
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        # Not 2: with 2, transformers pools at the largest id instead of the end token.
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "image_size": 32,
        "patch_size": settings.patch,
        "hidden_size": settings.width,
        "intermediate_size": 4 * settings.width,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.width // 32,
        "projection_dim": settings.dim,
        "hidden_act": "gelu",
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=settings.dim, initializer_factor=1.0)


def _pool(settings: Clip, tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, ...]:
    """Pictures ``[pool, 32, 32, 3]`` uint8, token ids ``[pool, 5, context]``, which canonical words the
    captions say ``[pool, 5, words]`` and which are true ``[pool, words]``, numbers of objects ``[pool]``, and whether
    each is a close one ``[pool]``."""
    columns: tuple[list[Tensor], ...] = ([], [], [], [], [], [])
    meaning = _meaning(tokenizer)
    pairs = np.asarray([i for i, pair in enumerate(scenes.PAIRS) if pair in scenes.SEEN])
    for number, start in enumerate(range(0, settings.pool, PART)):
        index = np.arange(start, min(start + PART, settings.pool))
        drawn = np.random.default_rng((settings.seed, number))
        if close := number < settings.close * settings.pool / PART:
            label = pairs[drawn.integers(len(pairs), size=len(index))]
            world = scenes.of_classes(settings.seed, "pretraining", index, label, radii=scenes.CLOSE)
        else:
            world = scenes.of_anything(settings.seed, "pretraining", index, pairs=scenes.SEEN, shares=settings.shares)
        texts = [text for five in words.captions(world) for text in five]
        batch = tokenizer(texts, padding="max_length", max_length=CONTEXT, truncation=True)
        ids = torch.tensor(batch["input_ids"]).view(len(index), words.CAPTIONS_A_SCENE, CONTEXT)
        facts = [
            " ".join(f"{o.size} {o.fill} {o.color} {o.shape} {o.place}" for o in world.objects(i))
            for i in range(len(index))
        ]
        true = torch.tensor(tokenizer(facts, padding="max_length", max_length=CONTEXT)["input_ids"])
        images = pictures(world, settings.natural, drawn)
        parts = (torch.from_numpy(images), ids, meaning[ids].amax(2), meaning[true].amax(1))
        for column, part in zip(columns, (*parts, torch.from_numpy(world.count), torch.full((len(index),), close))):
            column.append(part)
    return tuple(torch.cat(column) for column in columns)


def _meaning(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """``[vocabulary, words]``: 1 where a token says a canonical word of an object (synonyms say the same)."""
    canonical = " ".join((*scenes.SHAPES, *scenes.FILLS, *scenes.COLORS, *scenes.SIZES, *scenes.PLACES)).split()
    column = {word: i for i, word in enumerate(dict.fromkeys(canonical))}
    says = dict(column)
    for word, others in words.SYNONYMS.items():
        for other in others:
            says |= dict(zip(other.split(), (column[w] for w in word.split() if w in column)))
    table = torch.zeros(len(tokenizer), len(column))
    for word, i in says.items():
        table[tokenizer.convert_tokens_to_ids(word), i] = 1
    return table


def _groups(model: CLIPModel, settings: Clip) -> list[dict]:
    """Weights decay; biases, norms and embeddings do not; the logit scale has a rate of its own."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if name != "logit_scale":
            bare = parameter.ndim < 2 or "embedding" in name
            (plain if bare else decayed).append(parameter)
    return [
        {"params": decayed, "lr": settings.lr, "weight_decay": settings.weight_decay},
        {"params": plain, "lr": settings.lr, "weight_decay": 0.0},
        {"params": [model.logit_scale], "lr": settings.scale_lr, "weight_decay": 0.0},
    ]


if __name__ == "__main__":
    main()
