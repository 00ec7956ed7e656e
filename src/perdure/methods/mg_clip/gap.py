"""The modality gap of a CLIP model over a task, and how many epochs preserve it.

Knows features, labels and the rule that stops the first task. Does not know models, loops or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.errors import TrainingError


class Gap(NamedTuple):
    """Similarity of image-text pairs in logit units (cosine times the logit scale)."""

    positive: float
    """Images with the prompt of their own class."""
    negative: float
    """Images with the prompts of the other classes."""
    centroid: float
    """Distance of the mean image feature from the mean text feature (no unit)."""


def measure_gap(
    images: Float[Tensor, "images dim"],
    texts: Float[Tensor, "classes dim"],
    labels: Int[Tensor, " images"],
    *,
    scale: float = 1.0,
    batch_size: int,
) -> Gap:
    """Mean similarity of positive and of negative pairs, as a mean of batch means.

    The images are taken in consecutive batches; a short last batch weighs as much as a full one. The
    negative mean of image i is ``scale * (v_i . sum_c u_c - v_i . u_y) / (classes - 1)``, so that the
    matrix of all pairs is never made. With one class there are no negative pairs: 0.
    """
    own = (images * texts[labels]).sum(1)
    others = (images @ texts.sum(0) - own) / (len(texts) - 1) if len(texts) > 1 else torch.zeros_like(own)
    positive = torch.stack([part.mean() for part in own.split(batch_size)]).mean()
    negative = torch.stack([part.mean() for part in others.split(batch_size)]).mean()
    centroid = torch.linalg.vector_norm(images.mean(0) - texts.mean(0))
    return Gap(scale * positive.item(), scale * negative.item(), centroid.item())


def gap_left(negative_before: float, negative: float, *, tolerance: float) -> bool:
    """Whether the negative similarity has moved by more than `tolerance` (a fraction) of its first value.

    Raises:
        TrainingError: the first value is 0, of which there is no fraction.
    """
    if negative_before == 0:
        raise TrainingError(
            "the mean similarity of negative pairs is exactly 0 before training, so that no relative change exists",
            where="epochs: auto",
            todo="Give epochs a number.",
        )
    return abs(negative_before - negative) > tolerance * abs(negative_before)


def select_epochs(
    negative_before: float, negatives: Sequence[float], *, tolerance: float = 0.1, minimum: int = 1
) -> int:
    """Epochs that preserve the gap: those before the first that leaves it, and at least `minimum`.

    Args:
        negative_before: mean negative similarity of the zero-shot model.
        negatives: the same after 1, 2, ... epochs; may end at the first that left the gap.
    """
    kept = 0
    for negative in negatives:
        if gap_left(negative_before, negative, tolerance=tolerance):
            break
        kept += 1
    return max(kept, minimum)
