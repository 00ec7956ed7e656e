"""Augmentation of a whole batch of image tensors at once.

Knows pixels ``[images, channels, height, width]`` on any device. Random numbers are handed in. Does not know
files, PIL or data sets.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Augment = Literal["none", "crop_flip"]
PADDING = 4
"""Pixels of black border before the crop, as usual for CIFAR and Tiny-ImageNet."""


def crop_and_flip(
    images: Shaped[Tensor, "images channels height width"],
    uniforms: Float[Tensor, "images three"],
    *,
    padding: int = PADDING,
) -> Shaped[Tensor, "images channels height width"]:
    """A random crop of each zero-padded image, mirrored with probability 1/2.

    In distribution torchvision's ``RandomCrop(size, padding)`` and ``RandomHorizontalFlip()`` for each image.

    Args:
        uniforms: numbers in [0, 1) for top, left and mirror.
    """
    count, channels, height, width = images.shape
    device = images.device
    offsets = (uniforms[:, :2] * (2 * padding + 1)).long().to(device, non_blocking=True)
    mirrored = (uniforms[:, 2] < 0.5).to(device, non_blocking=True)[:, None]
    rows = offsets[:, :1] + torch.arange(height, device=device)
    across = torch.arange(width, device=device)
    columns = offsets[:, 1:2] + torch.where(mirrored, across.flip(0), across)
    # A pixel's channels side by side: one look-up a pixel, and the layout that convolutions like.
    tall, wide = height + 2 * padding, width + 2 * padding
    padded = images.new_zeros(count, tall, wide, channels)
    padded[:, padding : padding + height, padding : padding + width] = images.permute(0, 2, 3, 1)
    which = torch.arange(count, device=device)[:, None, None]
    pixels = (which * tall + rows[:, :, None]) * wide + columns[:, None, :]
    taken = padded.view(-1, channels).index_select(0, pixels.flatten())
    return taken.view(count, height, width, channels).permute(0, 3, 1, 2)


def as_float(images: Shaped[Tensor, ...], dtype: torch.dtype = torch.float32) -> Float[Tensor, ...]:
    """uint8 to [0, 1]; floating images only change their type."""
    return images.to(dtype) if images.is_floating_point() else images.to(dtype) / 255
