"""Weights put together out of several: interpolation, running averages, and sums of task vectors.

Knows state dicts: tensors by name. Does not know models, tasks or how the weights were trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import CheckpointError

State = Mapping[str, Tensor]
Factors = tuple[Float[Tensor, "rank inputs"], Float[Tensor, "outputs rank"]]
"""(A, B) of a low-rank matrix B A."""
_COUNTERS = (torch.int64, torch.uint8)
"""Types that task vectors leave out: counters and masks stay as they were before fine-tuning."""


def interpolate(base: State, tuned: State, weight: float, *, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """``(1 - weight) base + weight tuned`` (WiSE-FT, Wortsman et al. 2022, equation 1).

    ``interpolate({"w": 2.0}, {"w": 4.0}, 0.8)`` gives 3.6.

    Args:
        weight: 0 is the base, 1 the tuned weights.
        names: parameters to interpolate; the rest, such as batch norm's statistics, is taken from `tuned`. None: all
            entries of floating type.
    """
    _require_alike(base, tuned)
    chosen = {n for n, t in tuned.items() if t.is_floating_point()} if names is None else set(names)
    return {n: (1 - weight) * base[n] + weight * t if n in chosen else t.clone() for n, t in tuned.items()}


def running_average(average: State, tuned: State, count: int) -> dict[str, Tensor]:
    """The mean of ``count + 1`` states, given that of the first `count` and the newest one."""
    _require_alike(average, tuned)
    return {n: (average[n] * count + t) / (count + 1) if t.is_floating_point() else t for n, t in tuned.items()}


def between_products(base: Factors, tuned: Factors, weight: float) -> Factors:
    """Factors (A, B) of ``(1 - weight) base + weight tuned``, of the products B A; exact, whatever the ranks.

    Where `tuned` begins with the rows of A that `base` has, B alone changes and the rank stays; else the ranks add up.
    """
    (a, b), (more_a, more_b) = base, tuned
    rank = len(a)
    if torch.equal(a, more_a[:rank]):
        first = (1 - weight) * b + weight * more_b[:, :rank]
        return more_a, torch.cat([first, weight * more_b[:, rank:]], dim=1)
    return torch.cat([a, more_a]), torch.cat([(1 - weight) * b, weight * more_b], dim=1)


# -- task vectors -------------------------------------------------------------------------------------------


def task_vector(pretrained: State, tuned: State) -> dict[str, Tensor]:
    """``tuned - pretrained`` for all entries but counters and masks (int64, uint8).

    Raises:
        CheckpointError: other names or shapes.
    """
    _require_alike(pretrained, tuned)
    return {n: tuned[n] - t for n, t in pretrained.items() if t.dtype not in _COUNTERS}


def largest(merged: State | None, vector: State) -> dict[str, Tensor]:
    """Element by element whichever is larger in size; `vector`, the later one, where both are alike.

    MagMax (Marczak et al. 2024). One task after another is the same as all at once.
    ``largest({"w": [1, -3]}, {"w": [-2, 3]})`` is ``[-2, 3]``.
    """
    if merged is None:
        return {n: t.clone() for n, t in vector.items()}
    _require_alike(merged, vector)
    return {n: torch.where(t.abs() >= merged[n].abs(), t, merged[n]) for n, t in vector.items()}


def summed(vectors: Sequence[State]) -> dict[str, Tensor]:
    """The sum of task vectors; added with weight ``1 / len(vectors)`` it is their average."""
    for vector in vectors[1:]:
        _require_alike(vectors[0], vector)
    return {n: torch.stack([v[n] for v in vectors]).sum(0) for n in vectors[0]}


def ties(vectors: Sequence[State], *, keep: float = 0.2) -> dict[str, Tensor]:
    """Task vectors trimmed, their signs elected, and the mean of what agrees (TIES, Yadav et al. 2023).

    Args:
        keep: share of a vector's elements, the largest in size, that are kept.
    """
    for vector in vectors[1:]:
        _require_alike(vectors[0], vector)
    names = sorted(vectors[0])
    rows = torch.stack([torch.cat([vector[n].flatten() for n in names]) for vector in vectors])
    parts = ties_of_rows(rows, keep=keep).split([vectors[0][n].numel() for n in names])
    return {n: part.view_as(vectors[0][n]) for n, part in zip(names, parts)}


def ties_of_rows(rows: Float[Tensor, "tasks values"], *, keep: float = 0.2) -> Float[Tensor, " values"]:
    """`ties` of vectors that are laid flat, one a row."""
    count = rows.shape[1]
    smallest = max(count - int(keep * count), 1)
    threshold = rows.abs().kthvalue(smallest, dim=1, keepdim=True).values
    kept = torch.where(rows.abs() >= threshold, rows, 0)
    signs = kept.sum(0).sign()
    signs = torch.where(signs == 0, signs.sum().sign(), signs)
    agree = torch.where((kept * signs > 0), kept, 0)
    return agree.sum(0) / (agree != 0).sum(0).clamp_min(1)


def add_vector(pretrained: State, vector: State, weight: float) -> dict[str, Tensor]:
    """``pretrained + weight vector``; entries that the vector lacks stay as they are."""
    return {n: t + weight * vector[n] if n in vector else t.clone() for n, t in pretrained.items()}


def _require_alike(first: State, second: State) -> None:
    odd = sorted(first.keys() ^ second.keys()) or [n for n in first if first[n].shape != second[n].shape]
    if odd:
        raise CheckpointError(f"weights to merge do not agree in {odd[0]!r}", expected="the same names and shapes")
