"""CoTTA's augmentation of a batch: jitter, affine, blur, flip and noise, one draw for all images but the noise.

Knows pixels in 0..1 and a generator. Does not know models; normalisation comes after it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms.v2 import functional as V

NOISE = 0.005


def augment(
    pixels: Float[Tensor, "images channels side side"], generator: torch.Generator
) -> Float[Tensor, "images channels side side"]:
    """One augmentation: colour jitter, an affine map of the image padded by its edge, blur, centre crop, a flip half of
    the time, and noise. Draws are made on the CPU."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    side = pixels.shape[-1]
    x = jitter(pixels.clamp(0, 1), generator)
    pad = side // 2
    x = V.pad(x, [pad, pad, pad, pad], padding_mode="edge")
    reach = x.shape[-1] / 16
    x = V.affine(
        x,
        angle=between(-15, 15),
        translate=[between(-reach, reach), between(-reach, reach)],
        scale=between(0.9, 1.1),
        shear=[0.0, 0.0],
        interpolation=V.InterpolationMode.BILINEAR,
        fill=[0.0],
    )
    x = V.gaussian_blur(x, [5, 5], [between(0.001, 0.5)] * 2)
    x = V.center_crop(x, [side, side])
    if between(0, 1) < 0.5:
        x = x.flip(-1)
    noise = torch.randn(x.shape, generator=generator) * NOISE
    return (x + noise.to(x)).clamp(0, 1)


def jitter(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast, saturation, hue and gamma in a random order; of one channel, those that it has."""
    ranges = [(0.6, 1.4), (0.7, 1.3), (0.5, 1.5), (-0.06, 0.06), (0.7, 1.3)]
    drawn = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    values = [low + (high - low) * u for (low, high), u in zip(ranges, drawn)]
    for k in torch.randperm(5, generator=generator).tolist():
        if k == 4:
            pixels = pixels.clamp(1e-8, 1) ** values[k]
        elif k < 2 or pixels.shape[1] == 3:
            pixels = (V.adjust_brightness, V.adjust_contrast, V.adjust_saturation, V.adjust_hue)[k](pixels, values[k])
    return pixels
