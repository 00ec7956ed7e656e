"""Zero-shot features, raw features and preprocessing against the official code's arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clip_state import golden_clip
from torch.nn.functional import normalize

from perdure.models.clip.transform import ClipTransform


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


@pytest.mark.parametrize("case", ["landscape", "portrait", "cifar_up", "gray"])
def test_preprocessing_equals_the_official_one(golden, case):
    arrays = np.load(golden("mgclip") / "preprocess.npz")
    (name,) = [n for n in arrays.files if n.startswith(f"{case}/uint8")]
    ours = ClipTransform(size=int(arrays[f"{case}/n_px"]))(arrays[name])
    torch.testing.assert_close(ours, torch.from_numpy(arrays[f"{case}/out"]), rtol=0, atol=1e-6)
