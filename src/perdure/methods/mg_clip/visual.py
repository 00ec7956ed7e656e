"""A cosine classifier in image space, and its fusion with the text classifier.

Knows features, one weight row a class, and probabilities. Does not know models, tasks or files.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from perdure import training
from perdure.loading import TensorBatches
from perdure.runtime import Runtime


def cosine_scores(
    features: Float[Tensor, "images dim"], weight: Float[Tensor, "classes dim"]
) -> Float[Tensor, "images classes"]:
    """Cosine of every feature with every row of the weight; no temperature."""
    return F.normalize(features, dim=1) @ F.normalize(weight, dim=1).T


def visual_loss(
    weight: Float[Tensor, "new dim"],
    features: Float[Tensor, "images dim"],
    labels: Int[Tensor, " images"],
) -> Float[Tensor, ""]:
    """Cross-entropy of the cosines over the current task's rows; a label is the place of its row.

    Rows of earlier classes would get exactly zero gradient; they take no part.
    """
    return F.cross_entropy(cosine_scores(features, weight), labels)


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


def fit_rows(
    start: Float[Tensor, "new dim"],
    features: Float[Tensor, "images dim"],
    labels: Int[Tensor, " images"],
    *,
    batch_size: int,
    settings: training.Fit,
    runtime: Runtime,
    stage: str = "visual",
) -> Float[Tensor, "new dim"]:
    """The weight rows of the current task's classes, trained from where they are on frozen features; a label is the
    place of its row."""
    rows = nn.Parameter(start.to(runtime.device, copy=True))
    batches = TensorBatches({"feature": features, "label": labels}, batch_size=batch_size, runtime=runtime, stage=stage)
    training.fit(
        lambda batch: visual_loss(rows, batch["feature"], batch["label"]),
        {"rows": rows},
        batches,
        settings,
        runtime=runtime,
        stage=stage,
    )
    return rows.detach()
