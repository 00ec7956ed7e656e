"""Pretrains micro-vit on things that microworld does not hold; `pretrain_micro.py micro-vit` calls `make`.

A vision transformer pretrained on ImageNet-21k has learned to tell things apart, but not the stream's: micro-vit is
an image classifier of outlines and patterns that are none of microworld's shapes and fills, on the same dark ground
and in the same colors. Knows how they are drawn and the loop. It sees no scene of microworld and no label of it, but
in the card, where frozen features are judged on validation pictures.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from micro_pretraining import lr_factor
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from perdure.data.microworld import render, scenes, styles

MEAN, DEVIATION = (0.2, 0.2, 0.2), (0.2, 0.2, 0.2)
SIDE, SAMPLES, DIRECTIONS = 32, 3, 512
"""Pixels of a side, samples a pixel along it, directions in which an outline's radius is known."""
PERIOD = 4.2
"""Pixels of a pattern's period."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Of the pretraining."""

    seed: int = 5
    steps: int = 2000
    pool: int = 40_000
    """Pictures drawn once."""
    outlines: int = 120
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    patch: int = 8
    width: int = 128
    layers: int = 4
    turn: float = 15.0
    """Degrees by which a thing is turned at most; its pattern 5 more."""
    radii: tuple[float, float] = (10.0, 15.0)
    """Of a thing, in pixels."""


def make(settings: Settings, out: Path) -> None:
    """Pretrain, and write model, preprocessing and card."""
    began = time.process_time()
    model = pretrain(settings)
    minutes = (time.process_time() - began) / 60
    save(model, out)
    (out / "README.md").write_text(card(settings, model, minutes))
    print((out / "README.md").read_text(), flush=True)


def pretrain(settings: Settings) -> ViTModel:
    """A ViT trained from nothing to name a picture's outline and its pattern; both heads are thrown away."""
    pictures, outline, pattern = drawn(settings)
    torch.manual_seed(settings.seed)
    model = ViTModel(_config(settings), add_pooling_layer=False).train()
    heads = nn.ModuleList(nn.Linear(settings.width, n) for n in (settings.outlines, len(PATTERNS)))
    parameters = [*model.parameters(), *heads.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim != 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(settings.seed)
    shown = np.zeros(3)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * lr_factor(step, settings)
        rows = torch.randint(len(pictures), (settings.batch,), generator=generator)
        feature = model(pixel_values=pixels(pictures[rows])).last_hidden_state[:, 0]
        said = [head(feature) for head in heads]
        loss = F.cross_entropy(said[0], outline[rows]) + F.cross_entropy(said[1], pattern[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        right = [(s.argmax(1) == t[rows]).float().mean().item() for s, t in zip(said, (outline, pattern))]
        shown += [loss.item(), *right]
        if (step + 1) % 100 == 0:
            loss_, first, second = shown / 100
            print(f"{step + 1} loss {loss_:.3f} outline {first:.3f} pattern {second:.3f} {time.process_time():.0f} s")
            shown[:] = 0
    return model.eval()


# -- what it sees -------------------------------------------------------------------------------------------


def drawn(settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures uint8 ``[pool side side 3]``, their outlines and their patterns ``[pool]``."""
    rng = np.random.default_rng(settings.seed)
    radius, hole = outlines(rng, settings.outlines)
    outline, pattern = (rng.integers(n, size=settings.pool) for n in (settings.outlines, len(PATTERNS)))
    made = np.empty((settings.pool, SIDE, SIDE, 3), np.uint8)
    for start in range(0, settings.pool, 256):
        part = slice(start, start + 256)
        made[part] = _pictures(rng, radius, hole, outline[part], pattern[part], settings)
    return torch.from_numpy(made), torch.from_numpy(outline), torch.from_numpy(pattern)


def outlines(rng: np.random.Generator, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Radius by direction ``[count directions]``, 1 at most, and radius of a round hole ``[count]``, mostly none.

    Half are random polygons, half smooth with random waves.
    """
    angle = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
    found = np.empty((count, DIRECTIONS), np.float32)
    for i in range(count):
        if i % 2:
            waves = [(n, rng.normal() * 0.6 / n, rng.uniform(0, 2 * np.pi)) for n in range(1, 7)]
            radius = np.exp(sum(size * np.cos(n * angle + phase) for n, size, phase in waves))
        else:
            radius = _polygon(rng, angle)
        found[i] = radius / radius.max()
    return found, np.where(rng.random(count) < 0.2, rng.uniform(0.2, 0.45, count), 0.0).astype(np.float32)


def _polygon(rng: np.random.Generator, angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Radius of a polygon with 4 to 10 corners at random distances, in directions that go round."""
    n = int(rng.integers(4, 11))
    at = (np.arange(n) + rng.uniform(-0.35, 0.35, n)) * 2 * np.pi / n
    corners = rng.uniform(0.35, 1.0, n)[:, None] * np.stack([np.cos(at), np.sin(at)], 1)
    radius = np.full(len(angle), 1e-3)
    for a, b in zip(corners, np.roll(corners, -1, axis=0)):
        # The ray at an angle meets the edge a + s (b - a), 0 <= s <= 1, at distance t.
        edge, ray = b - a, np.stack([np.cos(angle), np.sin(angle)], 1)
        cross = ray[:, 0] * edge[1] - ray[:, 1] * edge[0]
        safe = np.where(abs(cross) < 1e-9, 1e-9, cross)
        t = (a[0] * edge[1] - a[1] * edge[0]) / safe
        s = (a[0] * ray[:, 1] - a[1] * ray[:, 0]) / safe
        radius = np.where((s >= 0) & (s <= 1) & (t > 0), np.maximum(radius, t), radius)
    return radius


def _wave(u, v):
    return (v + np.float32(0.35) * np.abs(u % 1 * 2 - 1)) % 1 < 0.5


def _bricks(u, v):
    return ((u + np.float32(0.5) * (np.floor(v) % 2)) % 1 > 0.25) & (v % 1 > 0.25)


def _mesh(u, v):
    return (u % 1 < 0.3) | (v % 1 < 0.3)


def _scales(u, v):
    x, y = (u + np.float32(0.5) * (np.floor(v) % 2)) % 1 - np.float32(0.5), v % 1
    return x * x + y * y < 0.3


def _rings(u, v):
    return np.sqrt(u * u + v * v) % 1 < 0.5


def _rays(u, v):
    return (np.arctan2(v, u) * np.float32(9 / (2 * np.pi))) % 1 < 0.5


def _triangles(u, v):
    return u % 1 + v % 1 < 1


def _halves(u, v):
    return u < 0


PATTERNS: tuple[Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.bool_]], ...] = (
    *(_wave, _bricks, _mesh, _scales),
    *(_rings, _rays, _triangles, _halves),
)
"""Where a pattern is bright, at points in periods; some count from the middle of the thing."""
_FROM_THE_MIDDLE = (_rings, _rays, _halves)


def _pictures(rng, radius, hole, outline, pattern, settings: Settings) -> NDArray[np.uint8]:
    """Things of these outlines and patterns in random places, sizes, turns and colors ``[n side side 3]``."""
    n, fine = len(outline), SIDE * SAMPLES
    size = rng.uniform(*settings.radii, n).astype(np.float32)[:, None, None]
    reach = np.minimum(size, SIDE / 2 - 1)
    x, y = (SIDE / 2 + (SIDE / 2 - reach) * rng.uniform(-1, 1, (n, 1, 1)).astype(np.float32) for _ in range(2))
    grid = ((np.arange(fine) + 0.5) / SAMPLES).astype(np.float32)
    turn, own = (np.radians(rng.uniform(-a, a, n)) for a in (settings.turn, settings.turn + 5))
    u, v = _turned(grid[None, None, :] - x, grid[None, :, None] - y, turn)
    at = (np.arctan2(v, u) * (DIRECTIONS / (2 * np.pi))).astype(np.int64) % DIRECTIONS
    far = np.sqrt(u * u + v * v) / size
    inside = (far <= radius[outline[:, None, None], at]) & (far > hole[outline][:, None, None])
    bright = np.empty(inside.shape, bool)
    u, v = _turned(u, v, own)
    for number, fill in enumerate(PATTERNS):
        rows = pattern == number
        phase = rng.uniform(0, 1, (2, int(rows.sum()), 1, 1)).astype(np.float32)
        phase *= fill not in _FROM_THE_MIDDLE
        bright[rows] = fill(u[rows] / PERIOD + phase[0], v[rows] / PERIOD + phase[1])
    body, light = (_mean(mask).astype(np.float32) for mask in (inside, inside & bright))
    color = render.RGB[rng.integers(len(render.RGB), size=n)] * rng.uniform(0.86, 1.14, (n, 3))
    ground = rng.uniform(14, 40, (n, 1, 1, 1)) * np.ones((1, 1, 1, 3))
    light = light + render.GAP * (body - light)
    made = ground * (1 - body)[..., None] + color[:, None, None, :] * light[..., None]
    made += rng.normal(0, 5, (n, SIDE, SIDE, 1))
    return np.clip(made + 0.5, 0, 255).astype(np.uint8)


def _turned(x, y, angle) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    cosine, sine = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    return cosine * x + sine * y, cosine * y - sine * x


def _mean(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of a pixel's samples ``[n side side]``."""
    return mask.reshape(len(mask), SIDE, SAMPLES, SIDE, SAMPLES).mean((2, 4))


def pixels(images: Tensor) -> Tensor:
    """uint8 ``[images h w 3]`` -> normalized ``[images 3 h w]``, as the image processor does."""
    mean, deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)
    return ((images.float() / 255 - mean) / deviation).permute(0, 3, 1, 2).contiguous()


# -- what is written ----------------------------------------------------------------------------------------


def save(model: ViTModel, out: Path) -> None:
    """A folder that plain transformers loads; weights in float16."""
    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.float16).save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    side = {"height": SIDE, "width": SIDE}
    ViTImageProcessor(size=side, resample=3, image_mean=list(MEAN), image_std=list(DEVIATION)).save_pretrained(out)


def judged(model: ViTModel, look: str, *, each: int = 25) -> tuple[float, float]:
    """Accuracy in percent of nearest class means (cosine) and of a linear probe, over the stream's 40 classes.

    Frozen features of 100 training pictures a class, judged on `each` validation pictures a class.
    """
    found = {}
    for split, count in (("train", 100), ("validation", each)):
        label = np.arange(len(scenes.CLASSES) * count) % len(scenes.CLASSES)
        world = scenes.of_classes(7, split, np.arange(len(label)), label, radii=scenes.CLOSE)
        images = torch.from_numpy(styles.pictures(world, look, 3))
        with torch.inference_mode():
            parts = [model(pixel_values=pixels(part)).last_hidden_state[:, 0] for part in images.split(256)]
        found[split] = torch.cat(parts), torch.from_numpy(label)
    (train, known), (test, true) = found["train"], found["validation"]
    means = torch.stack([train[known == c].mean(0) for c in range(len(scenes.CLASSES))])
    nearest = (F.normalize(test, dim=1) @ F.normalize(means, dim=1).T).argmax(1)
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    x, y = (((t - mean) / deviation).numpy() for t in (train, test))
    probe = LogisticRegression(C=0.03, max_iter=300).fit(x, known.numpy())
    return 100 * (nearest == true).float().mean().item(), 100 * float(probe.score(y, true.numpy()))


def card(settings: Settings, model: ViTModel, minutes: float) -> str:
    """The model card."""
    size = sum(p.numel() for p in model.parameters())
    rows = []
    for look in ("plain", "rotated"):
        means, probe = judged(model, look)
        rows.append(f"| {look} | {means:.1f} | {probe:.1f} |")
    lines = [
        "# micro-vit",
        "",
        f"A vision transformer of {size / 1e6:.2f} million parameters for 32 x 32 pictures of microworld, perdure's",
        "generated world. It is for demos, tests and finding bugs; it knows nothing of real pictures.",
        "",
        f"Made by `python tools/pretrain_micro.py micro-vit` in {minutes:.1f} minutes of processor time, as an image",
        f"classifier of {settings.outlines} random outlines and {len(PATTERNS)} patterns, none of which is a shape or",
        "a fill of microworld; it saw no scene and no class of microworld.",
        "",
        "## Frozen features (%)",
        "",
        "The 40 classes of microworld, 100 training and 25 validation pictures each; chance is 2.5.",
        "",
        "| look | nearest class means | linear probe |",
        "|---|---|---|",
        *rows,
        "",
        "## Settings",
        "",
        *(f"- {key}: {value}" for key, value in asdict(settings).items()),
        "",
    ]
    return "\n".join(lines)


def _config(settings: Settings) -> ViTConfig:
    return ViTConfig(
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.width // 32,
        intermediate_size=4 * settings.width,
        image_size=SIDE,
        patch_size=settings.patch,
        layer_norm_eps=1e-6,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
