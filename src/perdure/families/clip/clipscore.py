"""CLIP as a reward: how well a text fits an image, by one frozen CLIP or several.

Knows CLIPScore, baselines, ensembles, and images of another resolution. Does not know what is adapted, nor where
the texts come from (class prompts, captions, a retrieval gallery).

Zhao et al., Test-Time Adaptation with CLIP Reward for Zero-Shot Generalization in Vision-Language Models, ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from perdure.errors import RecipeError, TrainingError

if TYPE_CHECKING:
    from perdure.models.clip import Clip

SCALE = 2.5
"""What a cosine is multiplied by (CLIPScore)."""
Baseline = Literal["image", "batch", "none"]
"""What is subtracted from a score: the mean over the samples of its image, over all images, or nothing."""
CONFIDENCE = {
    "ViT 24x1024/14 at 336": 10.0,
    "ViT 24x1024/14 at 224": 5.0,
    "ResNet 3+15+36+10x128 at 448": 3.0,
    "ViT 12x768/16 at 224": 1.0,
}
"""The paper's trust in a reward model, by its architecture."""


class ClipReward:
    """One or more frozen CLIPs that score texts for images. Text features are made once, by `encode_texts`.

    Args:
        models: the CLIPs.
        weights: of each model's scores; they need not sum to 1. See `ensemble_weights`.
        like: the CLIP whose normalised pixels will be handed in; a model with other means or another resolution gets
            them converted.
    """

    def __init__(self, models: Sequence[Clip], weights: Sequence[float], *, like: Clip) -> None:
        assert models and len(models) == len(weights)
        self.models, self.weights, self.like = list(models), list(weights), like

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> list[Float[Tensor, "texts dim"]]:
        """Unit features, one tensor a model; over-long texts are cut."""
        encoded = []
        for clip in self.models:
            ids = clip.cut(clip.tokenize(texts, truncate="keep-eot")).to(clip.device)
            encoded.append(unit(torch.cat([clip.text_features(part) for part in ids.split(batch_size)])))
        return encoded

    @torch.no_grad()
    def encode_images(self, pixels: Float[Tensor, "images 3 height width"]) -> list[Float[Tensor, "images dim"]]:
        """Unit features of pixels normalised as those of `like`, one tensor a model."""
        return [unit(clip.image_features(self._pixels(pixels, clip))) for clip in self.models]

    def encode_views(
        self, pixels: Float[Tensor, "images views 3 height width"], index: Int[Tensor, "images kept"]
    ) -> list[Float[Tensor, "images kept dim"]]:
        """Unit features of the selected views of each image, one tensor a model."""
        rows = torch.arange(len(index), device=index.device)[:, None]
        kept = pixels[rows, index].flatten(0, 1)
        return [features.view(*index.shape, -1) for features in self.encode_images(kept)]

    def table(
        self, images: Sequence[Float[Tensor, "*batch dim"]], texts: Sequence[Float[Tensor, "texts dim"]]
    ) -> Float[Tensor, "*batch texts"]:
        """The score of every text for every image, over all models."""
        scores = [clip_score(f @ g.T) for f, g in zip(images, texts, strict=True)]
        return combine(scores, self.weights)

    @torch.no_grad()
    def logits(
        self, images: Sequence[Float[Tensor, "*batch dim"]], texts: Sequence[Float[Tensor, "texts dim"]]
    ) -> Float[Tensor, "*batch texts"]:
        """Zero-shot logits of the models, each with its own scale, averaged: a teacher."""
        scores = [clip.scale * (f @ g.T) for clip, f, g in zip(self.models, images, texts)]
        return torch.stack(scores).mean(0)

    def _pixels(self, pixels: Tensor, clip: Clip) -> Tensor:
        ours, theirs = self.like.transform, clip.transform
        if (ours.mean, ours.std) != (theirs.mean, theirs.std):
            pixels = theirs.normalize((pixels * _channels(ours.std, pixels) + _channels(ours.mean, pixels)) * 255)
        return resize(pixels, clip.image_size)


def ensemble(
    models: Sequence[Clip | None], *, mode: Literal["weighted", "mean"], confidences: Sequence[float] = ()
) -> tuple[list[Clip], list[float]]:
    """The models that are there, and the weights of their scores.

    Args:
        mode: `weighted` by confidence, or all alike.
        confidences: one a model; empty: the paper's, by architecture.

    Raises:
        RecipeError: another number of confidences, or a model whose confidence the paper does not give.
    """
    given = [clip for clip in models if clip is not None]
    if confidences and len(confidences) != len(given):
        raise RecipeError(
            f"{len(confidences)} confidences for {len(given)} reward models", where="method.reward_confidences"
        )
    if len(given) == 1:
        return given, [1.0]
    if mode == "mean":
        return given, [1 / len(given)] * len(given)
    return given, ensemble_weights(confidences or [_confidence(clip) for clip in given])


def ensemble_weights(confidences: Sequence[float]) -> list[float]:
    """Shares of the confidences, rounded to two decimals and not normalised again: (10, 3, 5) -> .56, .17, .28."""
    total = sum(confidences)
    return [round(c / total, 2) for c in confidences]


def clip_score(cosines: Float[Tensor, "*batch"], *, scale: float = SCALE) -> Float[Tensor, "*batch"]:
    """``max(0, 2.5 cos)``."""
    return (scale * cosines).clamp_min(0)


def combine(scores: Sequence[Float[Tensor, "*batch"]], weights: Sequence[float]) -> Float[Tensor, "*batch"]:
    """Weighted sum of the models' scores."""
    total = torch.zeros_like(scores[0])
    for score, weight in zip(scores, weights, strict=True):
        total = total + weight * score
    return total


def rewards(
    scores: Float[Tensor, "*batch images samples"], *, baseline: Baseline = "image", amplify: bool = False
) -> Float[Tensor, "*batch images samples"]:
    """Scores minus their baseline; a baseline over a single score would leave nothing and is not subtracted.

    Args:
        amplify: divide by the (unbiased) standard deviation of what the baseline is the mean of.

    Raises:
        TrainingError: a score is not finite.
    """
    if not bool(torch.isfinite(scores).all()):
        raise TrainingError("a reward is not finite", todo="Check the reward model's weights and precision.")
    flat = scores.flatten(-2) if baseline == "batch" else scores
    if baseline == "none" or flat.shape[-1] < 2:
        return scores
    centered = flat - flat.mean(-1, keepdim=True)
    if amplify:
        centered = centered / (flat.std(-1, keepdim=True) + 1e-5)
    return centered.reshape(scores.shape)


def sums_to_zero(baseline: Baseline, samples: int) -> bool:
    """Whether the rewards of an image sum to zero, so that the log-sum-exp of its logits cancels in the loss."""
    return baseline == "image" and samples > 1


def pick(table: Float[Tensor, "*batch texts"], index: Int[Tensor, "*batch samples"]) -> Float[Tensor, "*batch samples"]:
    """The entries of sampled texts."""
    return table.gather(-1, index)


def resize(pixels: Float[Tensor, "images 3 height width"], side: int) -> Float[Tensor, "images 3 side side"]:
    """Normalised pixels at another resolution, as the published code has it: bicubic, corners aligned."""
    if pixels.shape[-1] == side and pixels.shape[-2] == side:
        return pixels
    return F.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=True)


def unit(features: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Features of length 1."""
    return F.normalize(features, dim=-1)


def _confidence(clip: Clip) -> float:
    facts: dict[str, Any] = clip.provenance()
    name = f"{facts['architecture']} at {facts['image_size']}"
    if name not in CONFIDENCE:
        raise RecipeError(
            f"the paper gives no confidence for a reward model {name}",
            where="method.reward_confidences",
            todo="Set one number a reward model, or `ensemble: mean`.",
        )
    return CONFIDENCE[name]


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).view(3, 1, 1).to(like.device, non_blocking=True)
