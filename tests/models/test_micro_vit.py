"""The embedded micro-vit: plain transformers loads it, and its frozen features tell microworld's classes apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import ViTModel

from perdure.data.microworld import scenes, styles
from perdure.models import vit
from perdure.models.clip.source import EMBEDDED


def test_it_is_what_transformers_loads():
    ours = vit.load(vit.Config(weights="micro-vit"))
    theirs = ViTModel.from_pretrained(EMBEDDED / "micro-vit", add_pooling_layer=False, dtype=torch.float32).eval()
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(pixel_values=pixels).last_hidden_state[:, 0]
        torch.testing.assert_close(ours.image_features(pixels), expected, rtol=1e-4, atol=1e-5)
    assert ours.transform.size == 32 and ours.transform.mean == (0.2, 0.2, 0.2)


def test_all_embedded_models_stay_small_and_have_a_card():
    folders = [path for path in EMBEDDED.iterdir() if path.is_dir()]
    assert all((folder / "README.md").is_file() for folder in folders)
    assert sum(file.stat().st_size for folder in folders for file in Path(folder).rglob("*")) < 20e6


def test_class_means_of_frozen_features_know_the_classes_that_it_never_saw():
    """Chance is 2.5 %; the card says 56 for plain pictures, with ten times as many training pictures."""
    model, found = vit.load(vit.Config(weights="micro-vit")), {}
    for split, each in (("train", 10), ("validation", 5)):
        label = np.arange(40 * each) % 40
        world = scenes.of_classes(11, split, np.arange(len(label)), label, radii=scenes.CLOSE)
        images = torch.from_numpy(styles.pictures(world)).permute(0, 3, 1, 2)
        with torch.no_grad():
            found[split] = model.image_features(model.transform.normalize(images)), torch.from_numpy(label)
    (train, known), (test, true) = found["train"], found["validation"]
    means = torch.stack([train[known == c].mean(0) for c in range(40)])
    nearest = (F.normalize(test, dim=1) @ F.normalize(means, dim=1).T).argmax(1)
    assert (nearest == true).float().mean() > 0.3
