"""Ridge regression of labels on features, by sums that only grow: exact, whatever the order of the data.

Knows matrices. Does not know images, tasks or what the features are. All is in float64: with the small ridges that are
tried, float32 has no digits left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.errors import TrainingError

BLOCK = 1024
"""Rows that are expanded at a time."""
Expand = Callable[[Float[Tensor, "rows dim"]], Float[Tensor, "rows width"]]


@dataclass
class Sums:
    """``G = H'H`` and ``Q = H'Y`` over all rows so far; `gram` is None before the first."""

    gram: Float[Tensor, "width width"] | None = None
    cross: Float[Tensor, "width classes"] | None = None

    def add(self, features: Float[Tensor, "rows dim"], targets: Float[Tensor, "rows classes"], expand: Expand) -> None:
        """Add rows. Classes that are new have columns beyond those known; absent ones are columns of 0.

        Raises:
            TrainingError: a feature is not finite.
        """
        if not bool(torch.isfinite(features).all()):
            raise TrainingError("a feature is not finite", todo="Look for damaged images: perdure data check")
        for rows, wanted in zip(features.split(BLOCK), targets.split(BLOCK)):
            hidden = expand(rows)
            if self.gram is None:
                self.gram = hidden.new_zeros(hidden.shape[1], hidden.shape[1])
                self.cross = hidden.new_zeros(hidden.shape[1], 0)
            assert self.cross is not None
            self.cross = widened(self.cross, wanted.shape[1])
            self.gram.addmm_(hidden.T, hidden)
            self.cross[:, : wanted.shape[1]] += hidden.T @ wanted

    def solve(self, ridge: float) -> Float[Tensor, "width classes"]:
        """``(G + ridge I)^-1 Q``, by Cholesky, or by LU where rounding has taken G's definiteness."""
        assert self.gram is not None and self.cross is not None
        system = self.gram.clone()
        system.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(system)
        if not int(failed):
            return torch.cholesky_solve(self.cross, factor)
        return torch.linalg.solve(system, self.cross)


def widened(matrix: Float[Tensor, "rows columns"], columns: int) -> Float[Tensor, "rows more"]:
    """The matrix with columns of 0 up to `columns`."""
    return torch.nn.functional.pad(matrix, (0, max(columns - matrix.shape[1], 0)))


def one_hot(labels: Int[Tensor, " rows"], classes: int) -> Float[Tensor, "rows classes"]:
    """Rows of 0 with a 1 at the label, float64."""
    return torch.nn.functional.one_hot(labels, classes).double()


def errors(
    features: Float[Tensor, "rows dim"],
    targets: Float[Tensor, "rows classes"],
    ridges: Sequence[float],
    *,
    fit: int,
    expand: Expand,
) -> Float[Tensor, " ridges"]:
    """Mean squared error on the rows after the first `fit`, of the weights that those fit under each ridge.

    One eigendecomposition serves all ridges: of the kernel of the rows, ``H (H'(HH' + rI)^-1 Y)``, or of ``H'H`` where
    there are more rows than columns. With no row to fit all weights are 0.
    """
    held = targets[fit:]
    if fit == 0:
        return (held**2).mean().expand(len(ridges)).clone()
    width = expand(features[:1]).shape[1]
    if fit <= width:
        values, basis, left = _by_rows(features, fit, expand)
        right = basis.T @ targets[:fit]
    else:
        values, basis, left, cross = _by_columns(features, targets, fit, expand)
        right = basis.T @ cross
    values = values.clamp_min(0)
    return torch.stack([((left @ (right / (values + r)[:, None]) - held) ** 2).mean() for r in ridges])


def _by_rows(features: Tensor, fit: int, expand: Expand) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues and vectors of the kernel of the first rows, and the kernel of the others with them, rotated."""
    kernel = features.new_zeros(len(features), fit)
    blocks = list(range(0, len(features), BLOCK))
    for i in blocks:
        rows = expand(features[i : i + BLOCK])
        for j in [b for b in blocks if b < fit]:
            columns = rows if i == j else expand(features[j : min(j + BLOCK, fit)])
            kernel[i : i + BLOCK, j : min(j + BLOCK, fit)] = rows @ columns[: fit - j].T
    values, basis = torch.linalg.eigh(kernel[:fit])
    return values, basis, kernel[fit:] @ basis


def _by_columns(features: Tensor, targets: Tensor, fit: int, expand: Expand) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eigenvalues and vectors of ``H'H`` of the first rows, the other rows in that basis, and ``H'Y``."""
    sums = Sums()
    sums.add(features[:fit], targets[:fit], expand)
    assert sums.gram is not None and sums.cross is not None
    values, basis = torch.linalg.eigh(sums.gram)
    left = torch.cat([expand(rows) @ basis for rows in features[fit:].split(BLOCK)])
    return values, basis, left, sums.cross


def smallest(errors: Float[Tensor, " ridges"], ridges: Sequence[float], *, slack: float = 0.0) -> float:
    """The ridge of the least error: the first one, or the largest within `slack` of the least, relative to it."""
    if not slack:
        return ridges[int(errors.argmin())]
    near = errors <= errors.min() * (1 + slack)
    return max(ridge for ridge, fits in zip(ridges, near.tolist()) if fits)
