"""Zero-shot features, and LoRA's logits, losses and gradients, against the official code's arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clip_state import golden_clip, lora_name
from torch.nn.functional import cross_entropy, normalize

from perdure.layers import lora


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_zero_shot_logits_equal_the_official_ones(golden, dtype, tolerance):
    folder = golden("mgclip")
    model = golden_clip(folder, dtype)
    arrays = np.load(folder / "lora_clip.npz")
    ids = torch.from_numpy(arrays["tokens"])
    images = normalize(model.image_features(torch.from_numpy(arrays["images"]).to(dtype)), dim=1)
    texts = normalize(model.text_features(model.cut(ids)), dim=1)
    logits = model.scale * images @ texts.T
    for ours, name in ((images, "image_features"), (texts, "text_features"), (logits, "logits")):
        torch.testing.assert_close(
            ours.double(), torch.from_numpy(arrays[f"zs_{name}"]), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("loss", ["all", "local"])
def test_lora_logits_losses_and_gradients_equal_the_official_ones(golden, loss):
    folder = golden("mgclip")
    model = golden_clip(folder)
    arrays = {name: torch.from_numpy(a) for name, a in np.load(folder / "lora_clip.npz").items()}
    meta = np.load(folder / "clip_state.npz")
    trained = lora.add_clip_lora(model.model, r=int(meta["meta_lora_r"]), alpha=float(meta["meta_lora_alpha"]))
    official = {n.removeprefix("lora/"): v.double() for n, v in arrays.items() if n.startswith("lora/")}
    lora.load_lora_state(model.model, {lora_name(n): v for n, v in official.items()})

    images = normalize(model.image_features(arrays["images"].double()), dim=1)
    texts = normalize(model.text_features(model.cut(arrays["tokens"])), dim=1)
    logits = model.scale * images @ texts.T
    torch.testing.assert_close(logits, arrays["logits"], rtol=1e-9, atol=1e-9)
    offset, target = (0, "y_all") if loss == "all" else (int(arrays["class_offset"]), "y_new")
    value = cross_entropy(logits[:, offset:], arrays[target] - offset)
    torch.testing.assert_close(value, arrays[f"loss_{loss}"], rtol=1e-9, atol=0)
    value.backward()
    for name in official:
        ours, theirs = trained[lora_name(name)].grad, arrays[f"grad_{loss}/{name}"]
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
