"""A cosine classifier in image space, and its fusion with the text classifier.

Knows features, one weight row a class, and probabilities. Does not know models, loops or files.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def cosine_scores(
    features: Float[Tensor, "images dim"], weight: Float[Tensor, "classes dim"]
) -> Float[Tensor, "images classes"]:
    """Cosine of every feature with every row of the weight; no temperature."""
    return F.normalize(features, dim=1) @ F.normalize(weight, dim=1).T


def visual_loss(
    weight: Float[Tensor, "new dim"],
    features: Float[Tensor, "images dim"],
    labels: Int[Tensor, " images"],
    *,
    first: int,
) -> Float[Tensor, ""]:
    """Cross-entropy of the cosines over the current task's rows, whose labels start at `first`.

    Rows of earlier classes would get exactly zero gradient; they take no part.
    """
    return F.cross_entropy(cosine_scores(features, weight), labels - first)


def fuse(
    text_logits: Float[Tensor, "images classes"],
    cosines: Float[Tensor, "images classes"],
    *,
    text_weight: float = 1.0,
    visual_weight: float = 4.0,
    text_softmax: Literal["double", "single"] = "double",
) -> Float[Tensor, "images classes"]:
    """Weighted mean of the text classifier's and the visual classifier's probabilities.

    ``double`` takes the softmax of the text probabilities once more, as the published numbers do.
    A cosine of -inf stands for a class that has no row yet.
    """
    text = text_logits.softmax(1)
    if text_softmax == "double":
        text = text.softmax(1)
    return (text_weight * text + visual_weight * cosines.softmax(1)) / (text_weight + visual_weight)


def missing_as_minus_infinity(
    cosines: Float[Tensor, "images rows"], *, classes: int
) -> Float[Tensor, "images classes"]:
    """Cosines widened to `classes` columns; classes without a row get -inf, which is probability 0."""
    if cosines.shape[1] == classes:
        return cosines
    rest = cosines.new_full((len(cosines), classes - cosines.shape[1]), -torch.inf)
    return torch.cat([cosines, rest], dim=1)
