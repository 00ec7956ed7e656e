"""What the pretraining of several micro models has alike: how the learning rate goes, and pictures of two looks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from perdure.data.microworld import scenes, styles


def lr_factor(step: int, settings: Any) -> float:
    """Factor of the learning rate: up in `warmup` steps, and down along a cosine in `steps`."""
    return min(1.0, (step + 1) / settings.warmup) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def pictures(world: scenes.Scenes, natural: float, draw: np.random.Generator) -> np.ndarray:
    """Plain pictures of the scenes, uint8 ``[scenes, h, w, 3]``; a share is `natural`, of severity 1 to 5."""
    images = styles.pictures(world)
    severity = np.where(draw.random(len(world)) < natural, draw.integers(1, 6, len(world)), 0)
    for strength in range(1, 6):
        rows = np.flatnonzero(severity == strength)
        if len(rows):
            images[rows] = styles.pictures(world.select(rows), "natural", strength)
    return images
