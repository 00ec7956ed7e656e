"""Noise that makes text features stand in for image features while a captioner learns (CapDec).

Knows features and drawn noise. Draws nothing itself. Nukrai et al., Text-Only Training for Image Captioning using
Noise-Injected CLIP, EMNLP 2022 Findings.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def add_noise(
    features: Float[Tensor, "texts dim"],
    noise: Float[Tensor, "texts dim"],
    *,
    variance: float,
    normalize: bool = True,
) -> Float[Tensor, "texts dim"]:
    """``unit(unit(x) + sqrt(variance) noise)``; the features themselves if the variance is 0.

    Args:
        noise: standard normal, or `in_ball`.
        normalize: bring the features to length 1 first.
    """
    if variance == 0:
        return features
    start = F.normalize(features, dim=-1) if normalize else features
    return F.normalize(start + math.sqrt(variance) * noise, dim=-1)


def in_ball(normal: Float[Tensor, "texts dim"], uniform: Float[Tensor, " texts"]) -> Float[Tensor, "texts dim"]:
    """Points spread evenly in the unit ball, from standard normal directions and uniform radii in [0, 1)."""
    return F.normalize(normal, dim=-1) * uniform[:, None] ** (1 / normal.shape[-1])
