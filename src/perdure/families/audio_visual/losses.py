"""Losses of the four audio-visual kinds of task: pure functions of scores and targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def localization_loss(
    scores: Float[Tensor, "segments classes"], labels: Float[Tensor, "segments classes"]
) -> Float[Tensor, ""]:
    """Cross-entropy of every segment with its (one-hot or soft) label."""
    return F.cross_entropy(scores, labels.to(scores.dtype))


def parsing_loss(
    scores: Float[Tensor, "videos segments classes"], labels: Float[Tensor, "videos classes"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the mean score with the multi-hot label as it is: a sum over the positive classes."""
    return F.cross_entropy(scores.mean(1).to(labels.dtype), labels)


def contrastive_loss(
    audio_to_image: Float[Tensor, "videos videos"], image_to_audio: Float[Tensor, "videos videos"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy with the pairing, in both directions."""
    own = torch.arange(len(audio_to_image), device=audio_to_image.device)
    return F.cross_entropy(audio_to_image, own), F.cross_entropy(image_to_audio, own)


def event_loss(
    event: Float[Tensor, ""],
    audio_to_image: Float[Tensor, "videos videos"],
    image_to_audio: Float[Tensor, "videos videos"],
    *,
    weights: tuple[float, float, float] = (5.0, 2.0, 1.5),
) -> Float[Tensor, ""]:
    """Event loss and both directions of the contrast, weighted."""
    audio, image = contrastive_loss(audio_to_image, image_to_audio)
    return weights[0] * event + weights[1] * audio + weights[2] * image


def contrast_logits(
    video: Float[Tensor, "segments dim"],
    audio: Float[Tensor, "segments dim"],
    *,
    segments: int,
    scale: Float[Tensor, ""] | float,
) -> Float[Tensor, "videos videos"]:
    """Scaled cosines of the mean features of each video's segments: audio of row i with images of column j."""
    means = (F.normalize(x.unflatten(0, (-1, segments)).mean(1), dim=1) for x in (audio, video))
    heard, seen = means
    return scale * heard @ seen.T


def answer_loss(logits: Float[Tensor, "videos answers"], answer: Int[Tensor, " videos"]) -> Float[Tensor, ""]:
    """Cross-entropy with the answer."""
    return F.cross_entropy(logits, answer)


def segmentation_loss(
    logits: Float[Tensor, "videos segments height width"], mask: Float[Tensor, "videos height width"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of each video's first frame, mean over pixels."""
    return F.binary_cross_entropy_with_logits(logits[:, 0], mask.to(logits.dtype))


def masked_similarity_loss(
    maps: Sequence[Float[Tensor, "frames dim height width"]],
    audio: Sequence[Float[Tensor, "frames dim"]],
    masks: Float[Tensor, "frames 1 height width"],
    *,
    pooling: Literal["avg", "max"] = "avg",
) -> Float[Tensor, ""]:
    """``-log(relu(cos(a, v)) + 1e-6)``, mean over frames and stages; v: the map where the pooled mask is over 0.5.

    Args:
        maps: visual features of each stage; `audio`: the sound of each frame, of the same width.
        masks: predicted probabilities.
        pooling: `avg` or `max`, of the masks to the size of the map.
    """
    total = masks.new_zeros(())
    pool = F.adaptive_avg_pool2d if pooling == "avg" else F.adaptive_max_pool2d
    for seen, heard in zip(maps, audio, strict=True):
        inside = (pool(masks, (seen.shape[2], seen.shape[3])) > 0.5).to(seen.dtype)
        mean = (seen * inside).mean((2, 3))
        total = total - torch.log(F.relu(F.cosine_similarity(heard, mean, dim=1)) + 1e-6).mean()
    return total / len(maps)
