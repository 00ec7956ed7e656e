"""AugMix: three chains of mild operations on an image, mixed with the image itself.

Knows pixels ``[3, height, width]`` (uint8) and the operations' strengths. All that is random is in a `Mix`, which
the caller draws. Does not know files or models. Hendrycks et al., AugMix, ICLR 2020; operations as PIL does them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as V

Pixels = UInt8[Tensor, "3 height width"]
OPERATIONS = (
    *("autocontrast", "equalize", "posterize", "rotate", "solarize"),
    *("shear_x", "shear_y", "translate_x", "translate_y"),
)
"""What chains are made of by default."""
COLOR_OPERATIONS = ("color", "contrast", "brightness", "sharpness")
"""Further operations; left out because they overlap with the corruptions of ImageNet-C."""
_UNLEVELLED = {"autocontrast", "equalize"}
_SIGNED = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operation of a chain."""

    name: str
    level: float = 0.0
    """Strength, between 0 and 10."""
    negative: bool = False
    """The other direction, for operations that have one."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """All that is random in one AugMix view."""

    chains: tuple[tuple[Step, ...], ...]
    weights: tuple[float, ...]
    """Of the chains; they sum to 1."""
    share: float
    """Weight of the image itself; the chains share the rest."""


def augmix(image: Pixels, mix: Mix) -> Float[Tensor, "3 height width"]:
    """The mixture in 0..255, not rounded. Normalising is affine, so that mixing before it is mixing after it."""
    mixed = mix.share * image.float()
    for weight, chain in zip(mix.weights, mix.chains, strict=True):
        changed = image
        for step in chain:
            changed = apply(changed, step)
        mixed = mixed + (1 - mix.share) * weight * changed.float()
    return mixed


def draw_mix(generator: torch.Generator, *, severity: float = 1.0, chains: int = 3) -> Mix:
    """Weights from Dirichlet(1, ..., 1), the image's share from Beta(1, 1), one to three operations a chain."""

    def uniform() -> float:
        return float(torch.rand((), generator=generator))

    def choice(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    exponentials = [-math.log1p(-uniform()) for _ in range(chains)]
    total = sum(exponentials) or 1.0
    share = uniform()
    drawn = []
    for _ in range(chains):
        steps = []
        for _ in range(1 + choice(3)):
            name = OPERATIONS[choice(len(OPERATIONS))]
            level = 0.1 + (severity - 0.1) * uniform()
            steps.append(Step(name=name, level=level, negative=uniform() > 0.5))
        drawn.append(tuple(steps))
    return Mix(chains=tuple(drawn), weights=tuple(e / total for e in exponentials), share=share)


def takes_level(name: str) -> bool:
    """Whether an operation has a strength."""
    return name not in _UNLEVELLED


def takes_sign(name: str) -> bool:
    """Whether an operation has two directions."""
    return name in _SIGNED


def apply(image: Pixels, step: Step) -> Pixels:
    """One operation."""
    level, sign, side = step.level, -1 if step.negative else 1, image.shape[-1]
    match step.name:
        case "autocontrast":
            return V.autocontrast(image)
        case "equalize":
            return V.equalize(image)
        case "posterize":
            return V.posterize(image, 4 - int(4 * level / 10))
        case "solarize":
            return V.solarize(image, 256 - int(256 * level / 10))
        case "rotate":
            return _rotate(image, sign * int(30 * level / 10))
        case "shear_x":
            return affine(image, (1, sign * 0.3 * level / 10, 0, 0, 1, 0))
        case "shear_y":
            return affine(image, (1, 0, 0, sign * 0.3 * level / 10, 1, 0))
        case "translate_x":
            return affine(image, (1, 0, sign * int(level * (side / 3) / 10), 0, 1, 0))
        case "translate_y":
            return affine(image, (1, 0, 0, 0, 1, sign * int(level * (side / 3) / 10)))
    return _COLOR[step.name](image, 1.8 * level / 10 + 0.1)


def affine(image: Pixels, matrix: Sequence[float]) -> Pixels:
    """PIL's affine transform: output pixel (x, y) is the input at (ax + by + c, dx + ey + f), bilinear, else black."""
    height, width = image.shape[-2:]
    opened = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    moved = opened.transform((width, height), Image.Transform.AFFINE, tuple(matrix), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(moved)).permute(2, 0, 1)


def _rotate(image: Pixels, degrees: int) -> Pixels:
    """Counter-clockwise around the centre, as PIL does it."""
    if degrees == 0:
        return image
    _, height, width = image.shape
    angle = -math.radians(degrees % 360)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    return affine(image, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y))


_COLOR: dict[str, Callable[[Tensor, float], Tensor]] = {
    "color": V.adjust_saturation,
    "contrast": V.adjust_contrast,
    "brightness": V.adjust_brightness,
    "sharpness": V.adjust_sharpness,
}
