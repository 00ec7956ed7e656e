"""Images as LLaVA-1.5 sees them: padded to a square in CLIP's mean colour, then CLIP's pixels.

Knows one PIL image at a time. Knows no files and no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def pixels(
    image: Image.Image, *, size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> Float[Tensor, "3 size size"]:
    """Padded to a square, resized (bicubic), scaled to [0, 1] and normalised."""
    from PIL import Image

    square = pad_to_square(image, mean=mean).resize((size, size), Image.Resampling.BICUBIC)
    values = np.asarray(square, dtype=np.float32) / 255
    values = (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def pad_to_square(image: Image.Image, *, mean: Sequence[float] = MEAN) -> Image.Image:
    """The image in the middle of a square of its longer side; an odd pixel goes to the right or the bottom."""
    from PIL import Image

    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(255 * m) for m in mean))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
