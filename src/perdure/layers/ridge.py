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

BLOCK = 4096
"""Rows that are expanded at a time."""
PANELS = 8
"""Column panels of a symmetric product, of whose blocks those below the diagonal are mirrored."""
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
            _add_symmetric(self.gram, hidden.T)
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


def _add_symmetric(total: Float[Tensor, "n n"], rows: Float[Tensor, "n inner"]) -> None:
    """``total += rows rows'``, for little more than half of the work."""
    size = -(-len(rows) // PANELS)
    for i in range(0, len(rows), size):
        part = rows[i:] @ rows[i : i + size].T
        total[i:, i : i + size] += part
        total[i : i + size, i + size :] += part[size:].T


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

    Of few rows the kernel is solved, ``H H'(HH' + rI)^-1 Y``, of many ``H'H``. With no row to fit all weights are 0.
    """
    held = targets[fit:]
    if fit == 0:
        return (held**2).mean().expand(len(ridges)).clone()
    width = expand(features[:1]).shape[1]
    if fit <= width:
        kernel = _kernel(features, fit, expand)
        square, left, right = kernel[:fit], kernel[fit:], targets[:fit]
    else:
        sums = Sums()
        sums.add(features[:fit], targets[:fit], expand)
        assert sums.gram is not None and sums.cross is not None
        square, right = sums.gram, sums.cross
        left = torch.cat([expand(rows) for rows in features[fit:].split(BLOCK)])
    weights = _solutions(square, right, ridges)
    return torch.stack([((left @ w - held) ** 2).mean() for w in weights])


def _solutions(square: Float[Tensor, "n n"], right: Float[Tensor, "n classes"], ridges: Sequence[float]):
    """``(square + r I)^-1 right`` for each ridge: by Cholesky; by one eigendecomposition for those too small for it."""
    basis: tuple[Tensor, Tensor] | None = None
    for r in ridges:
        system = square.clone()
        system.diagonal().add_(r)
        factor, failed = torch.linalg.cholesky_ex(system)
        if not int(failed):
            yield torch.cholesky_solve(right, factor)
            continue
        values, vectors = basis = basis or tuple(torch.linalg.eigh(square))  # type: ignore[assignment]
        yield vectors @ ((vectors.T @ right) / (values.clamp_min(0) + r)[:, None])


def _kernel(features: Tensor, fit: int, expand: Expand) -> Float[Tensor, "rows fit"]:
    """Products of all rows with the first `fit`."""
    kernel = features.new_zeros(len(features), fit)
    for j in range(0, fit, BLOCK):
        end = min(j + BLOCK, fit)
        columns = expand(features[j:end])
        _add_symmetric(kernel[j:end, j:end], columns)
        for i in range(end, len(features), BLOCK):
            part = expand(features[i : i + BLOCK]) @ columns.T
            kernel[i : i + BLOCK, j:end] = part
            kernel[j:end, i : min(i + BLOCK, fit)] = part[: max(fit - i, 0)].T
    return kernel


def smallest(errors: Float[Tensor, " ridges"], ridges: Sequence[float], *, slack: float = 0.0) -> float:
    """The ridge of the least error: the first one, or the largest within `slack` of the least, relative to it."""
    if not slack:
        return ridges[int(errors.argmin())]
    near = errors <= errors.min() * (1 + slack)
    return max(ridge for ridge, fits in zip(ridges, near.tolist()) if fits)
