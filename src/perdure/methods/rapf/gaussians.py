"""Classes as Gaussians in feature space: statistics, shrinkage, samples, and pairs that are easily confused.

Knows tensors. Does not know models, loops, noise sources or files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

RIDGE = 1e-4
"""Added to every variance, so that the covariance has a Cholesky factor."""


def class_statistics(
    features: Float[Tensor, "images dim"], labels: Int[Tensor, " images"], classes: Sequence[int]
) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, "classes dim dim"]]:
    """Mean and unbiased covariance (+ 1e-4 I) of each class's features, in the order of `classes`.

    A class with one image has no covariance: 1e-4 I. Every class must be present.
    """
    means, covariances = [], []
    ridge = RIDGE * torch.eye(features.shape[1], dtype=features.dtype, device=features.device)
    for label in classes:
        own = features[labels == label]
        assert len(own) > 0
        mean = own.mean(0)
        centred = own - mean
        means.append(mean)
        covariances.append(centred.T @ centred / max(len(own) - 1, 1) + ridge)
    if not means:
        return features[:0], ridge[None][:0]
    return torch.stack(means), torch.stack(covariances)


def shrink(covariance: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """The covariance plus its mean variance on the diagonal and its mean non-zero covariance beside it.

    Both means are rounded to float32, as in the published code; this only shows for float64 covariances.
    """
    outside = ~torch.eye(len(covariance), dtype=torch.bool, device=covariance.device)
    others = covariance[outside]
    mean_other = others.sum() / (others != 0).sum().clamp(min=1)
    added = torch.where(outside, mean_other, torch.diagonal(covariance).mean())
    return covariance + added.to(torch.float32)


def cholesky_factors(
    covariances: Float[Tensor, "classes dim dim"], *, shrinkage: bool
) -> Float[Tensor, "classes dim dim"]:
    """Lower factor of each covariance, made once and used for every draw."""
    if shrinkage and len(covariances):
        covariances = torch.stack([shrink(one) for one in covariances])
    return torch.linalg.cholesky(covariances)


def sample(
    means: Float[Tensor, "classes dim"],
    factors: Float[Tensor, "classes dim dim"],
    labels: Int[Tensor, " drawn"],
    noise: Float[Tensor, "drawn each dim"],
) -> Float[Tensor, "samples dim"]:
    """`each` samples ``mean + L z`` of every label drawn, in the order of `labels`."""
    drawn = means[labels].unsqueeze(1) + noise @ factors[labels].transpose(1, 2)
    return drawn.flatten(0, 1)


def hard_pairs(texts: Float[Tensor, "classes dim"], *, first: int, threshold: float) -> Int[Tensor, "pairs 2"]:
    """Pairs (old class, new class) whose unit text features are nearer than `threshold` (Euclidean).

    Old classes lie before `first`. Ordered by old class, then new class.
    """
    distances = torch.cdist(texts[:first], texts[first:], compute_mode="donot_use_mm_for_euclid_dist")
    pairs = (distances < threshold).nonzero()
    pairs[:, 1] += first
    return pairs


def pair_hinge(
    features: Float[Tensor, "samples dim"],
    texts: Float[Tensor, "classes dim"],
    own: Int[Tensor, " samples"],
    other: Int[Tensor, " samples"],
    *,
    margin: float = 0.1,
) -> Float[Tensor, ""]:
    """``mean relu(margin - e . u_own + e . u_other)`` over unit features e: old classes keep their side."""
    unit = F.normalize(features, dim=1)
    return F.relu(margin - (unit * texts[own]).sum(1) + (unit * texts[other]).sum(1)).mean()
