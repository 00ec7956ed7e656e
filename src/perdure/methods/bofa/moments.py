"""Moments of a task's features: Gaussian classes with one covariance, and directions that a task hardly uses.

Knows matrices, in float64. Does not know CLIP, prompts or training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def second_moment(features: Float[Tensor, "images dim"]) -> Float[Tensor, "dim dim"]:
    """``Z'Z / (images - 1) + 1e-4 I``, not centered."""
    return features.T @ features / (len(features) - 1) + 1e-4 * torch.eye(features.shape[1]).to(features)


def free_directions(moments: Float[Tensor, "tasks dim dim"], rank: int) -> Float[Tensor, "dim rank"]:
    """The eigenvectors with the least eigenvalues of the mean of the tasks' moments."""
    return torch.linalg.eigh(moments.mean(0)).eigenvectors[:, :rank]


def precision(
    features: Float[Tensor, "images dim"], labels: Int[Tensor, " images"], means: Float[Tensor, "classes dim"]
) -> Float[Tensor, "dim dim"]:
    """The inverse of the covariance within classes, shrunk: ``dim pinv((n - 1) C + trace(C) I)``.

    Args:
        labels: rows of `means`.
    """
    centered = features - means[labels]
    covariance = centered.T @ centered / (len(features) - 1)
    shrunk = (len(features) - 1) * covariance + covariance.trace() * torch.eye(len(covariance)).to(covariance)
    return features.shape[1] * torch.linalg.pinv(shrunk)


@dataclass
class Gaussians:
    """All classes seen: their means, and one precision over tasks."""

    means: Float[Tensor, "classes dim"]
    precision: Float[Tensor, "dim dim"]

    def joined(self, means: Float[Tensor, "new dim"], precision: Float[Tensor, "dim dim"]) -> Gaussians:
        """With the classes of one more task. As published, a mean's outer product is added to an inverse."""
        old, new = len(self.means), len(means)
        seen = old + new
        apart = self.means.mean(0) - means.mean(0)
        mixed = old / seen * self.precision + new / seen * precision
        return Gaussians(torch.cat([self.means, means]), mixed + old * new / seen**3 * torch.outer(apart, apart))

    def linear(self) -> tuple[Float[Tensor, "classes dim"], Float[Tensor, " classes"]]:
        """Weights and biases of the scores, under equal shares of the classes."""
        weights = self.means @ self.precision
        return weights, math.log(1 / len(self.means)) - (weights * self.means).sum(1) / 2

    def state_dict(self) -> dict[str, Tensor]:
        return {"means": self.means, "precision": self.precision}

    @classmethod
    def from_state(cls, state: Mapping[str, Any] | None) -> Gaussians | None:
        """None where there is none yet."""
        return None if state is None else cls(state["means"], state["precision"])
