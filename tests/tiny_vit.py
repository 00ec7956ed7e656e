"""A tiny real vision transformer on disk, as transformers writes it, for tests of methods on such a backbone."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import ViTConfig, ViTModel

from perdure.models import vit


def write(folder: Path, *, depth: int = 3, size: int = 16, patch: int = 4) -> Path:
    """A ViT whose weights are far from their first values."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=depth,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=size,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # the same one, whatever was drawn before
        torch.manual_seed(0)
        model = ViTModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


@cache
def _loaded(depth: int) -> vit.Vit:
    with TemporaryDirectory() as folder:
        return vit.load(vit.Config(weights=str(write(Path(folder), depth=depth))))


def fresh_vit(depth: int = 3) -> vit.Vit:
    """A copy of a tiny ViT that was loaded from disk once."""
    return deepcopy(_loaded(depth))
