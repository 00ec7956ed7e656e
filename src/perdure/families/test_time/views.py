"""Random views of one test image, the same for the same generator: crops and flips, jitter, AugMix.

Knows one decoded image and a CLIP's transform. View 0 is the plain centre view. Does not know models, data sets or
batches; runs in loader workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from perdure.errors import RecipeError
from perdure.families.test_time.augmix import augmix, draw_mix
from perdure.families.test_time.losses import count_selected
from perdure.images import open_image
from perdure.types import Batch, Example

Crop = Literal["crop", "hard"]
Box = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""


class Transform(Protocol):
    """The part of a CLIP's transform that views need."""

    @property
    def size(self) -> int: ...

    def pixels(self, image: Any) -> Tensor: ...
    def normalize(self, pixels: Tensor) -> Tensor: ...


def preprocess(
    example: Example, transform: Transform, *, count: int, crop: Crop = "crop", augmix: bool = False
) -> Batch:
    """``{"views": [count 3 size size]}``, drawn from torch's global generator, which the loader seeds by the example.

    Pixels are uint8, with AugMix float32 in 0..255 (mixtures are not rounded); view 0 is the plain view.
    """
    drawn = draw_views(
        example.inputs["image"],
        transform,
        count=count,
        crop=crop,
        mixed=augmix,
        generator=torch.default_generator,
    )
    return {"views": drawn}


def preprocess_as(config: Any, example: Example, transform: Transform) -> Batch:
    """`preprocess` with a config's `views`, `augment` and `augmix`."""
    return preprocess(example, transform, count=config.views, crop=config.augment, augmix=config.augmix)


def draw_views(
    image: Any, transform: Transform, *, count: int, crop: Crop, mixed: bool, generator: torch.Generator
) -> Shaped[Tensor, "views 3 size size"]:
    """The plain view and ``count - 1`` random ones."""
    opened = open_image(image)
    plain = transform.pixels(opened)
    whole = V.pil_to_tensor(opened)
    made = [_HOW[crop](whole, transform.size, generator) for _ in range(count - 1)]
    if not mixed:
        return torch.stack([plain, *made])
    return torch.stack([plain.float(), *(augmix(view, draw_mix(generator)) for view in made)])


def in_parts(
    batch: Batch, transform: Transform, at_once: int, answer: Callable[[Tensor, list[int]], Tensor]
) -> Float[Tensor, "images classes"]:
    """Answers to a batch of `preprocess`, a few images at a time: ``answer(normalised views, their seeds)``."""
    seeds = batch["seed"].tolist()
    parts = []
    for begin in range(0, len(seeds), at_once):
        part = slice(begin, begin + at_once)
        parts.append(answer(transform.normalize(batch["views"][part]), seeds[part]))
    return torch.cat(parts)


def check(views: int, selection: float):
    """What is wrong with these settings, as `Config.faults` yields it."""
    try:
        count_selected(views, selection)
    except RecipeError as fault:
        yield "selection", fault.what


def crop_view(
    image: UInt8[Tensor, "3 height width"], size: int, generator: torch.Generator, *, smallest: float = 0.08
) -> UInt8[Tensor, "3 size size"]:
    """A random resized crop, mirrored half of the time."""
    height, width = image.shape[-2:]
    cropped = resized_crop(image, crop_box(height, width, generator, smallest=smallest), size)
    return cropped.flip(-1) if _chance(generator, 0.5) else cropped


def hard_view(
    image: UInt8[Tensor, "3 height width"], size: int, generator: torch.Generator
) -> UInt8[Tensor, "3 size size"]:
    """A larger crop, then jitter (half of the time), grey (a fifth), blur (a tenth) and a flip (half)."""
    height, width = image.shape[-2:]
    view = resized_crop(image, crop_box(height, width, generator, smallest=0.2), size)
    if _chance(generator, 0.5):
        view = _jitter(view, generator)
    if _chance(generator, 0.2):
        view = V.rgb_to_grayscale(view, num_output_channels=3)
    if _chance(generator, 0.1):
        view = V.gaussian_blur(view, [3, 3], [_between(generator, 0.1, 2.0)])
    return view.flip(-1) if _chance(generator, 0.5) else view


def crop_box(height: int, width: int, generator: torch.Generator, *, smallest: float) -> Box:
    """torchvision's RandomResizedCrop: share of the area in (smallest, 1), aspect ratio in (3/4, 4/3), ten tries."""
    for _ in range(10):
        area = height * width * _between(generator, smallest, 1.0)
        ratio = math.exp(_between(generator, math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = (int(torch.randint(n + 1, (), generator=generator)) for n in (height - h, width - w))
            return top, left, h, w
    ratio = width / height
    w, h = width, height
    if ratio < 3 / 4:
        h = round(width / (3 / 4))
    elif ratio > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def resized_crop(image: UInt8[Tensor, "3 height width"], box: Box, size: int) -> UInt8[Tensor, "3 size size"]:
    """The box, resized to a square: bilinear, antialiased."""
    return V.resized_crop(image, *box, size=[size, size], interpolation=V.InterpolationMode.BILINEAR, antialias=True)


def _jitter(view: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation by a factor in 0.6 .. 1.4, hue by up to 0.1, in a random order."""
    factors = [_between(generator, 0.6, 1.4) for _ in range(3)] + [_between(generator, -0.1, 0.1)]
    for i in torch.randperm(4, generator=generator).tolist():
        view = (V.adjust_brightness, V.adjust_contrast, V.adjust_saturation, V.adjust_hue)[i](view, factors[i])
    return view


def _between(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def _chance(generator: torch.Generator, p: float) -> bool:
    return float(torch.rand((), generator=generator)) < p


_HOW = {"crop": crop_view, "hard": hard_view}
