"""Folders of small pictures, one color a class with noise, and a recipe that learns from them in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from perdure import recipe
from perdure.recipe import Recipe


def folder(root: Path, names: str, *, n: int = 10, kind: int = 0, colors: str = "") -> Path:
    """``root/<name>/<i>.png``; another `kind` is other pictures of the same classes, `colors` those of other ones."""
    for name, color in zip(names.split(), (colors or names).split(), strict=True):
        base = np.random.default_rng(sum(map(ord, color))).integers(0, 256, (1, 1, 3))
        for i in range(n):
            noise = np.random.default_rng([kind, sum(map(ord, name)), i]).integers(-25, 25, (8, 8, 3))
            file = root / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8)).save(file)
    return root


def asked(root: Path, out: Path, *overrides: str) -> Recipe:
    """Two tasks of two classes each, learned by replay."""
    settings = {
        "stream": {"name": "class_incremental", "data": {"name": "image_folder", "root": str(root)}, "step": 2},
        "method": {"name": "er", "batch_size": 4, "lr": 0.1, "epochs": 2},
        "models": {"net": {"name": "resnet18", "classes": 8, "width": 8, "stages": [1]}},
        "run": {"device": "cpu", "out": str(out), "name": "mine"},
    }
    return recipe.load(settings, overrides)
