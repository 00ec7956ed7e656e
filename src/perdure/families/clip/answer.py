"""What this folder's model answers: ``classify("picture.jpg")`` gives classes and their probabilities, the best first.

Needs torch, torchvision, transformers, safetensors, pillow, and peft where there is a folder ``adapter``. Knows the
files beside it alone: ``model``, ``adapter``, ``head.safetensors`` and ``classes.json``.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import normalize
from torchvision import transforms
from transformers import CLIPModel

HERE = Path(__file__).resolve().parent


def classify(image: Any, top: int = 5) -> dict[str, float]:
    """The `top` classes of a picture (a path or a PIL image) and their probabilities."""
    found = probabilities(image)
    best = found.topk(min(top, len(found)))
    names = about()["classes"]
    return {names[i]: value for i, value in zip(best.indices.tolist(), best.values.tolist())}


def probabilities(image: Any) -> torch.Tensor:
    """Of each class, in the order of ``classes.json``. The temperature there was fitted on validation images; without
    one they are not calibrated."""
    return (logits(image) / about().get("temperature", 1.0)).softmax(0)


@torch.no_grad()
def logits(image: Any) -> torch.Tensor:
    """Cosines with texts or with the rows of a visual classifier, times CLIP's logit scale; of both, the logarithm of
    their vote times that scale."""
    opened = image if isinstance(image, Image.Image) else Image.open(image)
    pixels: Any = transform()(opened.convert("RGB"))
    return logits_of(model(), load_file(HERE / "head.safetensors"), about(), pixels[None])[0]


def logits_of(clip: Any, head: dict[str, torch.Tensor], how: dict[str, Any], pixels: torch.Tensor) -> torch.Tensor:
    """``[images classes]`` from normalized pixels ``[images 3 size size]``, by what the files hold."""
    features = clip.get_image_features(pixels.to(clip.dtype))
    features = getattr(features, "pooler_output", features)
    if "adapter" in head:
        features = features @ head["adapter"].T
    features, scale = normalize(features, dim=1), clip.logit_scale.exp()
    cosines = features @ normalize(head["rows"], dim=1).T if "rows" in head else None
    if "texts" not in head:
        return scale * cosines  # type: ignore[operator]
    text = scale * features @ head["texts"].T
    if cosines is None:
        return text
    text = text.softmax(1).softmax(1) if how["text_softmax"] == "double" else text.softmax(1)
    weights = how["text_weight"], how["visual_weight"]
    return scale * ((weights[0] * text + weights[1] * cosines.softmax(1)) / sum(weights)).log()


@cache
def about() -> dict[str, Any]:
    """The classes, and the settings that an answer needs."""
    return json.loads((HERE / "classes.json").read_text("utf-8"))


@cache
def model() -> Any:
    """The CLIP, with its adapter if there is one."""
    clip: Any = CLIPModel.from_pretrained(HERE / "model")
    if (HERE / "adapter").is_dir():
        from peft import PeftModel

        clip = PeftModel.from_pretrained(clip, HERE / "adapter")
    return clip.eval()


@cache
def transform() -> transforms.Compose:
    """The preprocessing that ``preprocessor_config.json`` describes, on PIL images as CLIP was trained with."""
    said = json.loads((HERE / "model" / "preprocessor_config.json").read_text("utf-8"))
    size, how = said["size"], transforms.InterpolationMode.BICUBIC
    how = transforms.InterpolationMode.BILINEAR if said.get("resample") == 2 else how
    side = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
    steps: list[Any] = [transforms.Resize(side, how)]
    if said["do_center_crop"]:
        steps.append(transforms.CenterCrop((said["crop_size"]["height"], said["crop_size"]["width"])))
    steps += [transforms.ToTensor(), transforms.Normalize(said["image_mean"], said["image_std"])]
    return transforms.Compose(steps)
