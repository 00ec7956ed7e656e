"""The tower that micro-llava sees through: micro-clip's, taught what lies under each patch.

A contrastive tower says what a picture holds, hardly where; questions ask for places, counts and relations. So the
states that LLaVA reads (of the layer before the last) learn to tell, by one linear layer, each patch's object: shape,
fill, color, size and the edges of its box. Scenes and combinations are those of pretraining, mostly plain, some
`natural`; no shifted style is seen. Knows the objective and the loop. Does not know language.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from micro_pretraining import lr_factor, pictures
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel
from transformers.utils import logging

from perdure.data.microworld import coin, render, scenes
from perdure.models.llava.images import MEAN, STD

CLIP = Path(__file__).resolve().parents[1] / "src" / "perdure" / "models" / "micro" / "micro-clip"
BLOCK = 8
"""Steps whose scenes are rendered together."""
TRAITS = (len(scenes.SHAPES), len(scenes.FILLS), len(scenes.COLORS), len(scenes.SIZES))
LEAST = 8
"""Pixels of a patch that an object covers to be the patch's."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the tower's training."""

    seed: int = 4
    steps: int = 3000
    batch: int = 64
    lr: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.05
    natural: float = 0.2
    """Share of pictures in the look `natural`, of severity 1 to 5."""
    edges: float = 10.0
    """Weight of the edges' mean absolute error, in widths of the picture."""


@dataclass(frozen=True)
class Patches:
    """Pictures and what lies under their patches."""

    pixels: Tensor
    """``[pictures, 3, h, w]``, normalised."""
    there: Tensor
    """Bool ``[pictures, patches]``: an object covers enough of it."""
    traits: Tensor
    """Int64 ``[pictures, patches, 4]``: shape, fill, color and size of the one that covers most."""
    edges: Tensor
    """``[pictures, patches, 4]``: left, top, right, bottom of its box in widths of the picture. Not from the patch: a
    language model reads patches in a row, and would have to learn first which lies where."""

    def part(self, rows: slice) -> Patches:
        return Patches(self.pixels[rows], self.there[rows], self.traits[rows], self.edges[rows])


def taught(settings: Settings) -> CLIPVisionModel:
    """micro-clip's tower after its training, frozen."""
    torch.manual_seed(settings.seed)
    tower = of_clip().requires_grad_(True)
    told = nn.Linear(tower.config.hidden_size, 1 + sum(TRAITS) + 4)
    trained = [*tower.parameters(), *told.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.weight_decay)
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.lr * lr_factor(step, settings)
        at = step % BLOCK * settings.batch
        if at == 0:
            index = np.arange(step * settings.batch, (step + BLOCK) * settings.batch)
            block = patches(settings, "llava tower", index, tower.config.patch_size)
        wanted = block.part(slice(at, at + settings.batch))
        loss = error(said(tower, told, wanted.pixels), wanted, settings.edges)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % 200 == 0:
            print(f"tower {step + 1} loss {loss.item():.3f}", flush=True)
    with torch.no_grad():
        wanted = patches(settings, "llava tower validation", np.arange(1000), tower.config.patch_size)
        print(f"tower, validation: {shares(said(tower, told, wanted.pixels), wanted)}", flush=True)
    return tower.requires_grad_(False).eval()


def of_clip() -> CLIPVisionModel:
    """micro-clip's tower, for pixels that are normalised as OpenAI's CLIP does.

    Its own normalisation differs by a factor and a shift for each channel; the factor goes into the patches' weights,
    the shift into the position embeddings.
    """
    logging.set_verbosity_error()
    model = CLIPVisionModel.from_pretrained(CLIP, dtype=torch.float32)
    own = json.loads((CLIP / "preprocessor_config.json").read_text())
    mean, std = torch.tensor(own["image_mean"]), torch.tensor(own["image_std"])
    factor, shift = torch.tensor(STD) / std, (torch.tensor(MEAN) - mean) / std
    parts = dict(model.named_modules())
    embeddings = next(m for name, m in parts.items() if name.endswith("embeddings") and hasattr(m, "patch_embedding"))
    with torch.no_grad():
        weight = embeddings.patch_embedding.weight
        moved = (weight * shift[None, :, None, None]).sum((1, 2, 3))
        embeddings.position_embedding.weight[1:] += moved
        weight *= factor[None, :, None, None]
    return model


def patches(settings: Settings, split: str, index: np.ndarray, side: int) -> Patches:
    """New scenes of one to three objects, in patches of `side` pixels."""
    world = scenes.of_anything(settings.seed, split, index, pairs=scenes.SEEN, shares=coin.SHARES)
    draw = np.random.default_rng((settings.seed, int(index[0])))
    images, masks = pictures(world, settings.natural, draw), render.masks(world)
    count, most, height, width = masks.shape
    cover = masks.reshape(count, most, height // side, side, width // side, side).sum((3, 5)).reshape(count, most, -1)
    which, row = cover.argmax(1), np.arange(count)[:, None]
    traits = [trait[row, which] for trait in (world.shape, world.fill, world.color, world.size)]
    edges = render.boxes(masks)[row, which] / width
    pixels = (torch.from_numpy(images).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return Patches(
        pixels=pixels.permute(0, 3, 1, 2).contiguous(),
        there=torch.from_numpy(cover.max(1) >= LEAST),
        traits=torch.from_numpy(np.stack(traits, -1)),
        edges=torch.from_numpy(edges).float(),
    )


def said(tower: CLIPVisionModel, told: nn.Linear, pixels: Tensor) -> Tensor:
    """What the states that LLaVA reads tell of each patch ``[pictures, patches, 1 + traits + 4]``."""
    return told(tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:])


def error(found: Tensor, wanted: Patches, edges: float) -> Tensor:
    """Cross-entropies of what is there and of its traits, and the edges' absolute error at its weight."""
    on = wanted.there
    total = F.binary_cross_entropy_with_logits(found[..., 0], on.float())
    for logits, truth in zip(found[..., 1:-4][on].split(TRAITS, -1), wanted.traits[on].T):
        total = total + F.cross_entropy(logits, truth)
    return total + edges * F.l1_loss(found[..., -4:][on], wanted.edges[on])


def shares(found: Tensor, wanted: Patches) -> dict[str, float]:
    """Percent of patches that are right, and the edges' mean error in hundredths of the picture."""
    on = wanted.there
    right = {"object": ((found[..., 0] > 0) == on)}
    for name, logits, truth in zip(
        ("shape", "fill", "color", "size"), found[..., 1:-4][on].split(TRAITS, -1), wanted.traits[on].T
    ):
        right[name] = logits.argmax(-1) == truth
    found_edges = (found[..., -4:][on] - wanted.edges[on]).abs().mean()
    return {name: round(100 * r.float().mean().item(), 1) for name, r in right.items()} | {
        "edges": round(100 * found_edges.item(), 1)
    }
