"""What ``model.onnx`` beside this file answers: ``classify("picture.jpg")`` gives classes and their probabilities.

Needs onnxruntime, numpy and pillow. Knows ``model.onnx``, ``classes.json`` and ``preprocessor_config.json``.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent


def classify(image: Any, top: int = 5) -> dict[str, float]:
    """The `top` classes of a picture (a path or a PIL image) and their probabilities."""
    found = session().run(["probabilities"], {"pixel_values": pixels(image)[None]})[0][0]
    names = json.loads((HERE / "classes.json").read_text("utf-8"))["classes"]
    return {names[i]: float(found[i]) for i in np.argsort(-found)[:top]}


def pixels(image: Any) -> np.ndarray:
    """Normalized float32 pixels ``[3 size size]``, as ``preprocessor_config.json`` describes."""
    said = json.loads((HERE / "preprocessor_config.json").read_text("utf-8"))
    opened = image if isinstance(image, Image.Image) else Image.open(image)
    opened = opened.convert("RGB")
    how = Image.Resampling.BILINEAR if said.get("resample") == 2 else Image.Resampling.BICUBIC
    width, height = opened.size
    if "shortest_edge" in said["size"]:
        side = said["size"]["shortest_edge"]
        short, long = side, int(side * max(width, height) / min(width, height))
        opened = opened.resize((short, long) if width <= height else (long, short), how)
    else:
        opened = opened.resize((said["size"]["width"], said["size"]["height"]), how)
    if said["do_center_crop"]:
        crop = said["crop_size"]
        left = round((opened.width - crop["width"]) / 2)
        upper = round((opened.height - crop["height"]) / 2)
        opened = opened.crop((left, upper, left + crop["width"], upper + crop["height"]))
    values = np.asarray(opened, np.float32) / 255
    normal = (values - np.float32(said["image_mean"])) / np.float32(said["image_std"])
    return normal.transpose(2, 0, 1).astype(np.float32)


@cache
def session() -> Any:
    """The model, on what onnxruntime finds here."""
    import onnxruntime

    return onnxruntime.InferenceSession(HERE / "model.onnx", providers=onnxruntime.get_available_providers())
