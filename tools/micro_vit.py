"""Pretrains micro-vit on microworld's pictures without a label; `pretrain_micro.py micro-vit` calls `make`.

Knows pictures of the pretraining split and the loss of SimCLR (Chen et al. 2020): two views of a picture are alike, all
others of a batch are not. No class, caption or style is seen. The model is a plain vision transformer.
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
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2
from transformers import ViTConfig, ViTModel

from perdure.data.microworld import scenes, styles

MEAN, DEVIATION = (0.16, 0.16, 0.16), (0.2, 0.2, 0.2)
EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the pretraining."""

    seed: int = 3
    steps: int = 2000
    pool: int = 30_000
    """Scenes of one object, rendered once."""
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    temperature: float = 0.2
    patch: int = 8
    width: int = 128
    layers: int = 4
    heads: int = 4
    projected: int = 64
    smallest_crop: float = 0.4


def make(settings: Settings, out: Path) -> None:
    """Pretrain, and write a folder that plain transformers loads, with its card."""
    torch.manual_seed(settings.seed)
    started = time.process_time()
    pictures = _pool(settings)
    model = ViTModel(_config(settings), add_pooling_layer=False).train()
    head = nn.Sequential(
        nn.Linear(settings.width, settings.width), nn.GELU(), nn.Linear(settings.width, settings.projected)
    )
    trained = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay, betas=(0.9, 0.98))
    look = views(settings.smallest_crop)
    generator = torch.Generator().manual_seed(settings.seed)
    shown = 0.0
    for step in range(settings.steps):
        warm = min(1.0, (step + 1) / settings.warmup)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * warm * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
        rows = torch.randint(len(pictures), (settings.batch,), generator=generator)
        batch = torch.cat([torch.stack([look(p) for p in pictures[rows]]) for _ in range(2)])
        loss = alike(head(model(pixel_values=pixels(batch)).last_hidden_state[:, 0]), settings.temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        shown += loss.item()
        if (step + 1) % 100 == 0:
            print(f"{step + 1} loss {shown / 100:.3f} {time.process_time() - started:.0f} s", flush=True)
            shown = 0.0
    minutes = (time.process_time() - started) / 60
    _save(model.eval(), out)
    (out / "README.md").write_text(_card(settings, model, minutes))
    print((out / "README.md").read_text(), flush=True)


def views(smallest: float) -> v2.Transform:
    """What two looks at one picture may differ in: place, size, mirroring, colors, grey."""
    jitter = v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    crop = v2.RandomResizedCrop(32, scale=(smallest, 1.0), antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.RandomApply([jitter], p=0.8), v2.RandomGrayscale(p=0.2)])


def alike(projected: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss over two views of each picture: ``[2 pictures, dim]``, one view after the other."""
    unit = F.normalize(projected, dim=1)
    logits = unit @ unit.T / temperature
    logits.fill_diagonal_(-torch.inf)
    count = len(projected) // 2
    return F.cross_entropy(logits, torch.arange(2 * count).roll(count))


def pixels(images: Tensor) -> Tensor:
    """uint8 ``[images 3 h w]`` -> normalized, as the image processor does."""
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, DEVIATION))
    return (images.float() / 255 - mean) / deviation


def class_means(model: ViTModel, per_class: int = 25) -> float:
    """Percent right of the nearest class mean over the 40 classes, on pictures of the splits train and validation."""
    names = len(scenes.CLASSES)
    found = []
    for split, count in (("train", 2 * per_class), ("validation", per_class)):
        label = np.arange(names * count) % names
        world = scenes.of_classes(0, split, np.arange(names * count), label)
        images = torch.from_numpy(styles.pictures(world)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            parts = [model(pixel_values=pixels(p)).last_hidden_state[:, 0] for p in images.split(256)]
        found.append((F.normalize(torch.cat(parts), dim=1), torch.from_numpy(label)))
    (train, own), (test, truth) = found
    means = F.normalize(torch.stack([train[own == c].mean(0) for c in range(names)]), dim=1)
    return 100 * float(((test @ means.T).argmax(1) == truth).float().mean())


def _pool(settings: Settings) -> Tensor:
    """uint8 ``[pool 3 32 32]`` of one object each, none of the held-out combinations."""
    parts = []
    for start in range(0, settings.pool, 2000):
        index = np.arange(start, min(start + 2000, settings.pool))
        world = scenes.of_anything(settings.seed, "pretraining", index, pairs=scenes.SEEN, shares=(1.0, 0.0, 0.0))
        parts.append(torch.from_numpy(styles.pictures(world)).permute(0, 3, 1, 2))
    return torch.cat(parts)


def _config(settings: Settings) -> ViTConfig:
    return ViTConfig(
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=4 * settings.width,
        image_size=32,
        patch_size=settings.patch,
        layer_norm_eps=EPS,
    )


def _save(model: ViTModel, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.float16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "do_center_crop": False,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(DEVIATION),
    }
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")


def _card(settings: Settings, model: ViTModel, minutes: float) -> str:
    count = sum(p.numel() for p in model.parameters()) / 1e6
    lines = [
        "# micro-vit",
        "",
        f"A vision transformer of {count:.2f} million parameters for 32 x 32 pictures of microworld, perdure's",
        "generated world. It is for demos, tests and finding bugs; it knows nothing of real pictures.",
        "",
        f"Made by `python tools/pretrain_micro.py micro-vit` in {minutes:.1f} minutes of processor time, without",
        "labels (SimCLR), on plain pictures of one object. Ten of the 40 combinations of shape and fill were held out.",
        "",
        f"Nearest class means on the 40 classes: {class_means(model):.1f} % of 1000 validation pictures (chance 2.5).",
        "",
        "## Settings",
        "",
        *(f"- {name}: {value}" for name, value in asdict(settings).items()),
        "",
    ]
    return "\n".join(lines)
