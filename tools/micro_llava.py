"""Pretrains micro-llava: a tower of micro-clip's, a projector and a tiny Llama, on conversations about plain scenes.

Knows its settings, the loop and the card. Held-out combinations, synonyms and styles are not seen; neither are the
prompts of the eight instruction tasks, but for their words one by one (`echo`). It stops after `minutes` of processor
time and keeps its state beside the model: the same command goes on from there.
"""

from __future__ import annotations

import copy
import json
import random
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import micro_llava_texts as texts
import micro_llava_tower as towers
import numpy as np
import torch
from micro_pretraining import lr_factor
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from perdure.data.microworld import coin, render, scenes, styles, words
from perdure.families.instruction.settings import Tuning
from perdure.models.llava import Llava
from perdure.models.llava.assemble import put_together
from perdure.types import Example

STATE = "training.pt"
KEEP = 100
"""Steps after which the state is kept."""
BLOCK = 8
"""Steps whose conversations are sorted by length together."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the model and its pretraining."""

    seed: int = 4
    tower: towers.Settings = towers.Settings()
    steps: int = 4500
    batch: int = 32
    rounds: int = 8
    """Questions and answers about one picture."""
    echoes: float = 0.1
    """Share of rounds that repeat random words."""
    drills: float = 0.3
    """Share of conversations without a picture, from the step `drills_from` on."""
    drills_from: int = 2104
    lr: float = 3e-3
    warmup: int = 60
    weight_decay: float = 0.05
    width: int = 128
    inner: int = 384
    layers: int = 4
    heads: int = 4
    minutes: float = 90
    """Processor minutes of one call."""


def make(settings: Settings, out: Path) -> None:
    """Pretrain, and write model, tokenizer and card; or stop in the middle and keep the state."""
    began = time.process_time()
    kept = out / STATE
    found = torch.load(kept, weights_only=True) if kept.is_file() else None
    tower = towers.of_clip() if found else towers.taught(settings.tower)
    torch.manual_seed(settings.seed)
    llava = build(settings, tower)
    optimizer, trained = _optimizer(llava, settings)
    state = {"step": 0, "minutes": 0.0}
    if found:
        llava.model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        state = {"step": found["step"], "minutes": found["minutes"]}
    llava.language_model.train()
    shown = 0.0
    for step in range(state["step"], settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * lr_factor(step, settings)
        with torch.autocast("cpu", torch.bfloat16):
            loss = llava.answer_loss(batch(llava, settings, step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        shown += loss.item()
        minutes = (time.process_time() - began) / 60
        if (step + 1) % 50 == 0:
            print(f"{step + 1} loss {shown / 50:.3f} {state['minutes'] + minutes:.1f} min", flush=True)
            shown = 0.0
        over = minutes > settings.minutes
        if (over or (step + 1) % KEEP == 0) and step + 1 < settings.steps:
            out.mkdir(parents=True, exist_ok=True)
            more: dict[str, Any] = {"step": step + 1, "minutes": state["minutes"] + minutes}
            torch.save({"model": llava.model.state_dict(), "optimizer": optimizer.state_dict(), **more}, kept)
        if over and step + 1 < settings.steps:
            print(f"stopped after step {step + 1}: run the same command again", flush=True)
            return
    minutes = state["minutes"] + (time.process_time() - began) / 60
    save(llava.eval(), out)
    kept.unlink(missing_ok=True)
    (out / "README.md").write_text(card(llava, settings, minutes))
    print((out / "README.md").read_text(), flush=True)


def build(settings: Settings, tower: CLIPVisionModel) -> Llava:
    """The model before pretraining: a tower that has learned, and the rest at random.

    Attention is plain: for so short texts on a CPU, torch's fused one costs three times as much.
    """
    tokenizer = texts.tokenizer()
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            intermediate_size=settings.inner,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=texts.ROOM,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model = put_together(decoder, tower)
    model.set_attn_implementation("eager")
    return Llava(model, tokenizer, max_length=texts.ROOM)


def batch(llava: Llava, settings: Settings, step: int) -> Any:
    """Conversations about new scenes, of like lengths; what they are depends on seed and step alone."""
    return llava.collate(_block(llava, settings, step // BLOCK)[step % BLOCK])


@lru_cache(maxsize=1)
def _block(llava: Llava, settings: Settings, number: int) -> list[list[Any]]:
    """The conversations of `BLOCK` steps, dealt out by length."""
    count = BLOCK * settings.batch
    index = np.arange(number * count, (number + 1) * count)
    world = scenes.of_anything(settings.seed, "llava", index, pairs=scenes.SEEN, shares=coin.SHARES)
    draw = random.Random(number)
    drills = settings.drills if number * BLOCK >= settings.drills_from else 0.0
    items = [llava.preprocess(e, True) for e in examples(world, settings, draw, drills)]
    items.sort(key=lambda item: len(item["input_ids"]))
    batches = [items[i : i + settings.batch] for i in range(0, count, settings.batch)]
    draw.shuffle(batches)
    return batches


def examples(world: scenes.Scenes, settings: Settings, draw: random.Random, drills: float = 0.0) -> list[Example]:
    """One conversation of several rounds a scene; `drills`: the share of those without its picture."""
    pictures = styles.pictures(world)
    boxes = render.boxes(render.masks(world)) / pictures.shape[1]
    vocabulary = texts.vocabulary()
    found = []
    for i, said in enumerate(words.captions(world)):
        objects = world.objects(i)
        drill = drills > 0 and draw.random() < drills
        asked = texts.DRILLS if drill else texts.ABOUT
        rounds = texts.conversation(objects, boxes[i].tolist(), said, draw, settings.rounds, asked)
        rounds = [texts.echo(vocabulary, draw) if draw.random() < settings.echoes else r for r in rounds]
        messages = [{"from": who, "value": t} for pair in rounds for who, t in zip(("human", "gpt"), pair)]
        seen = {} if drill else {"image": pictures[i]}
        messages[0]["value"] = "<image>\n" * bool(seen) + messages[0]["value"]
        found.append(Example(id=str(i), inputs={**seen, "conversations": messages}))
    return found


def save(llava: Llava, out: Path) -> None:
    """A folder that plain transformers loads; weights in float16."""
    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(llava.model).to(torch.float16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    config = json.loads((out / "config.json").read_text())
    config["vision_config"] |= {"_name_or_path": "micro-clip", "dtype": "float16"}  # not where it was read here
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    texts.save_tokenizer(out)


def probe(llava: Llava, settings: Settings, count: int = 400) -> dict[str, tuple[float, int]]:
    """Share of answers that are word for word right on new plain scenes, by kind of question; captions left out."""
    world = scenes.of_anything(
        settings.seed, "llava validation", np.arange(count), pairs=scenes.SEEN, shares=coin.SHARES
    )
    pictures = styles.pictures(world)
    boxes = render.boxes(render.masks(world)) / pictures.shape[1]
    draw = random.Random(0)
    answer = llava.answerer(replace(Tuning(), max_new_tokens=24, generate_batch=64))
    found: dict[str, tuple[float, int]] = {}
    for kind in dict.fromkeys((*texts.ABOUT, *texts.DRILLS)):
        if kind is texts.caption:
            continue
        asked = []
        for i in range(count):
            objects = world.objects(i)
            extra: Any = boxes[i][0].tolist() if kind is texts.box else draw
            asked.append(kind(objects[0], objects, extra))
        items = [
            llava.preprocess(Example(id="", inputs={"image": pictures[i], "text": q}), False)
            for i, (q, _) in enumerate(asked)
        ]
        given = answer(llava.collate(items))
        right = [_near(a, b) if kind is texts.box else float(a == b) for a, (_, b) in zip(given, asked)]
        found[kind.__name__.strip("_")] = (100 * float(np.mean(right)), count)
    return found


def _near(given: str, truth: str) -> float:
    """Whether two boxes in words overlap by more than half."""
    from perdure.metrics.vqa import box_iou, parse_box

    one, other = parse_box(given.rstrip(".")), parse_box(truth.rstrip("."))
    return float(one is not None and other is not None and box_iou(one, other) > 0.5)


def card(llava: Llava, settings: Settings, minutes: float) -> str:
    """The model card: what it is, how it was made, what it can do before anything is learned."""
    size = sum(p.numel() for p in llava.model.parameters())
    rows = [f"| {kind} | {share:.1f} |" for kind, (share, _) in probe(llava, settings).items()]
    lines = [
        "# micro-llava",
        "",
        f"A LLaVA of {size / 1e6:.2f} million parameters for 32 x 32 pictures of microworld, perdure's generated",
        "world: micro-clip's tower, taught what lies under each patch and then frozen, a projector, and a Llama that",
        "has read nothing but what follows. It is for demos, tests and finding bugs; it knows nothing of real",
        "pictures, and no English beyond 400 words.",
        "",
        f"Made by `python tools/pretrain_micro.py micro-llava` in {minutes:.1f} minutes of processor time, on",
        f"{settings.steps * settings.batch:,} conversations of {settings.rounds} rounds, each about a new plain scene:",
        "captions, and questions answered by whole sentences. From step "
        f"{settings.drills_from:,} on, {100 * settings.drills:.0f} % of them",
        "have no picture and ask for words and letters of a list. The prompts of microworld's eight instruction tasks",
        "and their forms of answers were not used; their words were read one by one. Ten of the 40 combinations of",
        "shape and fill, and a list of synonyms, were held out. The shifted styles were not seen. The standard system",
        "prompt is one token.",
        "",
        "## Answers that are right word for word (%)",
        "",
        "400 new plain scenes of one to three objects, questions as in pretraining, greedy; of `box`, those that",
        "overlap the true one by more than half.",
        "",
        "| question | right |",
        "|---|---|",
        *rows,
        "",
        "## Settings",
        "",
        *(f"- {key}: {value}" for key, value in asdict(settings).items() if key != "minutes"),
        "",
    ]
    return "\n".join(lines)


def _optimizer(llava: Llava, settings: Settings) -> tuple[torch.optim.AdamW, list[Tensor]]:
    """Of all but the tower; matrices decay."""
    trained = []
    for name, parameter in llava.model.named_parameters():
        parameter.requires_grad_("vision_tower" not in name)
        if parameter.requires_grad:
            trained.append(parameter)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98)), trained


if __name__ == "__main__":
    raise SystemExit("python tools/pretrain_micro.py micro-llava")
