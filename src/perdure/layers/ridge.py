"""Ridge regression of labels on features, by sums that only grow: exact, whatever the order of the data.

Knows matrices. Does not know images, tasks or what the features are. Sums and solutions are in float64: with the small
ridges that are tried, float32 has no digits left.
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
PANELS = 16
"""Column panels of a symmetric product, of whose blocks those below the diagonal are mirrored."""
ROUNDS = 8
"""Of refining solutions by a factor that is near; a factorization costs more."""
COLUMNS = 1024
"""Right-hand sides that are refined at a time."""
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
        """``(G + ridge I)^-1 Q``, by Cholesky, or by LU where rounding has taken G's definiteness. A factor in float32
        is tried first: where its refinement reaches float64's residual, it does so in about half of the time."""
        assert self.gram is not None and self.cross is not None
        near = _factor(self.gram, ridge, torch.float32)
        if near is not None and (found := _refined(self.gram, self.cross, [ridge], near)):
            return found[ridge]
        factor = _factor(self.gram, ridge)
        if factor is not None:
            return torch.cholesky_solve(self.cross, factor)
        return torch.linalg.solve(_shifted(self.gram, ridge), self.cross)


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

    Of few rows the kernel is solved, ``H'(HH' + rI)^-1 Y``, of many ``(H'H + rI)^-1 H'Y``. With no row to fit all
    weights are 0.
    """
    held = targets[fit:]
    if fit == 0:
        return (held**2).mean().expand(len(ridges)).clone()
    if fit <= expand(features[:1]).shape[1]:
        hidden = torch.cat([expand(rows) for rows in features[:fit].split(BLOCK)])
        square, right = hidden.new_zeros(fit, fit), targets[:fit]
        _add_symmetric(square, hidden)
        to_weights = [hidden.T]
    else:
        sums = Sums()
        sums.add(features[:fit], targets[:fit], expand)
        assert sums.gram is not None and sums.cross is not None
        square, right, to_weights = sums.gram, sums.cross, []
    found = torch.cat(_solutions(square, right, ridges), dim=1)
    fits = [torch.linalg.multi_dot([expand(rows), *to_weights, found]) for rows in features[fit:].split(BLOCK)]
    return ((torch.cat(fits).unflatten(1, (len(ridges), -1)) - held[:, None]) ** 2).mean(dim=(0, 2))


def _solutions(square: Float[Tensor, "n n"], right: Float[Tensor, "n classes"], ridges: Sequence[float]):
    """``(square + r I)^-1 right`` for each ridge: by Cholesky, of which one factor does for all ridges that are near
    enough to be refined by it; by one eigendecomposition for those too small for it."""
    found: dict[float, Tensor] = {}
    basis: tuple[Tensor, Tensor] | None = None
    for r in ridges:
        if r in found:
            continue
        factor = _factor(square, r)
        if factor is None:
            values, vectors = basis = basis or tuple(torch.linalg.eigh(square))  # type: ignore[assignment]
            found[r] = vectors @ ((vectors.T @ right) / (values.clamp_min(0) + r)[:, None])
            continue
        found[r] = torch.cholesky_solve(right, factor)
        others = [other for other in ridges if other not in found][: COLUMNS // right.shape[1]]
        found |= _refined(square, right, others, factor)
    return [found[r] for r in ridges]


def _factor(
    square: Float[Tensor, "n n"], ridge: float, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "n n"] | None:
    """The Cholesky factor of ``square + ridge I``; None where rounding leaves it indefinite."""
    factor, failed = torch.linalg.cholesky_ex(_shifted(square, ridge, dtype))
    return None if int(failed) else factor


def _shifted(square: Float[Tensor, "n n"], ridge: float, dtype: torch.dtype = torch.float64) -> Float[Tensor, "n n"]:
    """``square + ridge I``, a copy."""
    system = square.to(dtype, copy=True)
    system.diagonal().add_(ridge)
    return system


def _refined(
    square: Float[Tensor, "n n"], right: Float[Tensor, "n classes"], ridges: Sequence[float], factor: Tensor
) -> dict[float, Float[Tensor, "n classes"]]:
    """Solutions of ``(square + r I) x = right`` by the factor of a matrix that is near, of another ridge or in float32:
    residuals are solved for until they are those of rounding (LAPACK's `dsposv` stops there, too), and once more.
    Ridges of which a round leaves more than a tenth are not in what is returned.
    """

    def solved(rest: Float[Tensor, "n ridges classes"]) -> Float[Tensor, "n ridges classes"]:
        each = torch.cholesky_solve(rest.flatten(1).to(factor.dtype), factor)
        return each.to(rest.dtype).unflatten(1, rest.shape[1:])

    kept: dict[float, Tensor] = {}
    shifts = square.new_tensor(ridges)
    least = torch.finfo(square.dtype).eps * len(square) ** 0.5 * (square.norm() + shifts)
    rest = right[:, None].expand(-1, len(shifts), -1)
    found, before = torch.zeros_like(rest), rest.norm(dim=0).amax(dim=1)
    for _ in range(ROUNDS):
        if not len(shifts):
            break
        found = found + solved(rest)
        rest = right[:, None] - (square @ found.flatten(1)).unflatten(1, found.shape[1:]) - shifts[:, None] * found
        left = rest.norm(dim=0)
        done = (left <= least[:, None] * found.norm(dim=0)).all(dim=1)
        going = ~done & (left.amax(dim=1) < before / 10)
        last = found[:, done] + solved(rest[:, done])
        kept |= dict(zip(shifts[done].tolist(), last.unbind(1)))
        found, rest, shifts, least = found[:, going], rest[:, going], shifts[going], least[going]
        before = left.amax(dim=1)[going]
    return kept


def smallest(errors: Float[Tensor, " ridges"], ridges: Sequence[float], *, slack: float = 0.0) -> float:
    """The ridge of the least error: the first one, or the largest within `slack` of the least, relative to it."""
    if not slack:
        return ridges[int(errors.argmin())]
    near = errors <= errors.min() * (1 + slack)
    return max(ridge for ridge, fits in zip(ridges, near.tolist()) if fits)
