"""OpenAI's image preprocessing as a picklable function: bicubic resize, centre crop, RGB, normalise.

Knows pixels. Does not know models, the files that describe a transform (`preprocessor`), augmentation or data sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from perdure.errors import WeightsError
from perdure.files import text_files
from perdure.images import open_image

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""OpenAI's channel means (red, green, blue) of pixels in 0..1."""
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ClipTransform:
    """Image -> normalised tensor ``[3 size size]``.

    The image becomes RGB first, as the data loaders of published code do it; OpenAI's own function does so after
    cropping, which differs only where PIL resizes a mode in its own way (palettes, alpha).

    ``transform(image)`` equals ``transform.normalize(transform.pixels(image))`` to the bit, so that loader workers
    may send the four times smaller ``pixels`` and a whole batch is normalised at once on the device.
    """

    size: int
    """Side of the square that the model takes, in pixels."""
    shorter_side: int | None = None
    """Length of the shorter side after resizing; None: `size`."""
    keep_aspect: bool = True
    """False: squeeze the image to ``size x size`` instead of cropping."""
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __call__(self, image: Any) -> Float[Tensor, "3 size size"]:
        """Whatever `perdure.images.open_image` takes (PIL image, path, uint8 array ...), ready for the model."""
        return self.normalize(self.pixels(image))

    def pixels(self, image: Any) -> UInt8[Tensor, "3 size size"]:
        """Resized, cropped RGB pixels 0..255."""
        opened = open_image(image)
        if self.keep_aspect:
            cropped = _center_crop(_resize_shorter(opened, self.shorter_side or self.size, self.resampling), self.size)
        else:
            cropped = opened.resize((self.size, self.size), self.resampling)
        array = torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8)
        return array.view(self.size, self.size, 3).permute(2, 0, 1).contiguous()

    @property
    def resampling(self) -> Image.Resampling:
        """How PIL resizes."""
        return Image.Resampling.BILINEAR if self.interpolation == "bilinear" else Image.Resampling.BICUBIC

    def normalize(self, pixels: UInt8[Tensor, "... 3 height width"]) -> Float[Tensor, "... 3 height width"]:
        """``(pixels / 255 - mean) / std`` in float32, on the device of `pixels`."""
        mean, std = (torch.tensor(v).view(3, 1, 1).to(pixels.device, non_blocking=True) for v in (self.mean, self.std))
        return pixels.to(torch.float32, copy=True).div_(255).sub_(mean).div_(std)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder, or a WeightsError."""
    content = text_files.read_json(path, error=WeightsError)
    if not isinstance(content, dict):
        raise WeightsError("not a JSON object", where=str(path))
    return content


def channel_triple(values: Any, where: str) -> tuple[float, float, float]:
    """A number by channel, red, green and blue; one number stands for all three."""
    if isinstance(values, int | float):
        values = [values] * 3
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise WeightsError(f"channel statistics {values!r}", where=where, expected="three numbers")
    red, green, blue = map(float, values)
    return red, green, blue


def _resize_shorter(image: Image.Image, length: int, resampling: Image.Resampling) -> Image.Image:
    """The shorter side becomes `length`, the longer one is rounded down, as torchvision does."""
    width, height = image.size
    if min(width, height) == length:
        return image
    if width <= height:
        size = length, int(length * height / width)
    else:
        size = int(length * width / height), length
    return image.resize(size, resampling)


def _center_crop(image: Image.Image, side: int) -> Image.Image:
    width, height = image.size
    left, top = round((width - side) / 2.0), round((height - side) / 2.0)
    return image.crop((left, top, left + side, top + side))
