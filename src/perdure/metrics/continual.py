"""What a continual run has learned, kept and lost, from its accuracy matrix.

Knows one array: ``matrix[t, j]`` = accuracy on task j after learning task t, in percent or as a fraction,
NaN where it was not measured. Does not know examples, metrics' names or files. `from_rows` makes the
array out of the rows of a run's ``scores.json``; every other function is arithmetic on it.

A number that is not defined (no past task, a cell that was not measured) is None, never NaN and never 0;
the `continuum_compat` forms, which answer 0 for one task, are the exception that their name announces.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

DIRECTIONS: dict[str, Literal["up", "down"]] = {
    "average": "up",
    "average_of_tasks": "up",
    "last": "up",
    "last_of_tasks": "up",
    "forgetting": "down",
    "bwt": "up",
    "fwt": "up",
}
"""The keys of `summary`, and whether more is better."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The cells of a run for one metric."""

    matrix: Float[ndarray, "after asked"]
    """Accuracy on task `asked` after task `after`; NaN = not measured."""
    initial: Float[ndarray, " asked"] | None = None
    """Accuracy before the first task was learned, where it was measured."""
    counts: Int[ndarray, "after asked"] | None = None
    """Test examples behind each cell."""


def cells(
    rows: Iterable[Mapping[str, Any]], tasks: int, metric: str
) -> tuple[list[list[float | None]], list[list[int]]]:
    """Values and example counts ``[after][asked]`` of a run's rows; None and 0 where not measured. The last row, one
    more than there are tasks, is the test before the first task."""
    values: list[list[float | None]] = [[None] * tasks for _ in range(tasks + 1)]
    counts = [[0] * tasks for _ in range(tasks + 1)]
    for row in rows:
        values[row["after"]][row["asked"]] = row["values"].get(metric)  # after = -1 lands in the last row
        counts[row["after"]][row["asked"]] = row.get("n", 0)
    return values, counts


def summary(
    matrix: Float[ndarray, "after asked"],
    *,
    counts: Int[ndarray, "after asked"] | None = None,
    initial: Float[ndarray, " asked"] | None = None,
) -> dict[str, float | None]:
    """The numbers that papers print, in the unit of the matrix; keys as in `DIRECTIONS`.

    With counts, `average` and `last` weigh every test example alike (accuracy over all seen classes);
    the `_of_tasks` forms weigh every task alike.
    """
    return {
        "average": average_accuracy(matrix, counts=counts),
        "average_of_tasks": average_accuracy(matrix),
        "last": last_accuracy(matrix, counts=counts),
        "last_of_tasks": last_accuracy(matrix),
        "forgetting": forgetting(matrix),
        "bwt": backward_transfer(matrix),
        "fwt": forward_transfer(matrix, initial=initial),
    }


def from_rows(rows: Iterable[Mapping[str, Any]], *, tasks: int, metric: str, or_first: bool = False) -> Measured:
    """Rows ``{"after", "asked", "n", "values": {metric: value}}`` -> arrays of ``tasks`` x ``tasks``.

    `after` is -1 for measurements before the first task. Rows without a number for this metric are left
    out; where a cell occurs twice (a resumed run), the later row counts. With `or_first` a row that lacks the
    metric gives its first number instead: the own headline of a task that is scored in another way.
    """
    matrix = np.full((tasks, tasks), np.nan)
    initial = np.full(tasks, np.nan)
    counts = np.zeros((tasks, tasks), dtype=np.int64)
    for row in rows:
        value, after, asked = row["values"].get(metric), row["after"], row["asked"]
        if or_first and metric not in row["values"]:
            value = next((v for v in row["values"].values() if isinstance(v, int | float)), None)
        if not isinstance(value, int | float) or not (-1 <= after < tasks and 0 <= asked < tasks):
            continue
        if after == -1:
            initial[asked] = value
        else:
            matrix[after, asked] = value
            counts[after, asked] = row.get("n", 0)
    measured = ~np.isnan(matrix)
    return Measured(
        matrix=matrix,
        initial=None if np.isnan(initial).all() else initial,
        counts=counts if (counts[measured] > 0).all() else None,
    )


def step_accuracies(
    matrix: Float[ndarray, "after asked"], *, counts: Int[ndarray, "after asked"] | None = None
) -> list[float | None]:
    """Accuracy over all tasks seen so far, after each task: the curve of a class-incremental paper."""
    size = _square(matrix)
    return [_mean(matrix[t, : t + 1], weights=None if counts is None else counts[t, : t + 1]) for t in range(size)]


def average_accuracy(
    matrix: Float[ndarray, "after asked"], *, counts: Int[ndarray, "after asked"] | None = None
) -> float | None:
    """Average incremental accuracy ("Avg"): the mean of `step_accuracies` over all tasks."""
    steps = step_accuracies(matrix, counts=counts)
    return None if any(s is None for s in steps) else _mean(np.array(steps, dtype=np.float64))


def last_accuracy(
    matrix: Float[ndarray, "after asked"], *, counts: Int[ndarray, "after asked"] | None = None
) -> float | None:
    """Accuracy over all tasks after the last one ("Last")."""
    return step_accuracies(matrix, counts=counts)[-1]


def accuracy_when_learned(matrix: Float[ndarray, "after asked"]) -> float | None:
    """Mean of the diagonal: each task right after it was learned (SEFE's mean fine-tune accuracy)."""
    _square(matrix)
    return _mean(np.diagonal(matrix))


def forgetting_per_task(matrix: Float[ndarray, "after asked"]) -> list[float | None]:
    """For each task but the last: its best accuracy before the last task, less its final one.

    Cells that were not measured cannot be the best; a task without a final measurement is None.
    """
    lost: list[float | None] = []
    for j in range(_square(matrix) - 1):
        before = matrix[j:-1, j]
        known = before[~np.isnan(before)]
        lost.append(None if known.size == 0 or np.isnan(matrix[-1, j]) else float(known.max() - matrix[-1, j]))
    return lost


def forgetting(matrix: Float[ndarray, "after asked"]) -> float | None:
    """Mean of `forgetting_per_task` (Chaudhry et al. 2018); negative if old tasks went on improving."""
    lost = forgetting_per_task(matrix)
    return None if any(x is None for x in lost) else _mean(np.array(lost, dtype=np.float64))


def backward_transfer(matrix: Float[ndarray, "after asked"], *, over: Literal["past", "all"] = "past") -> float | None:
    """Final accuracy less accuracy when learned (Lopez-Paz & Ranzato 2017), summed over tasks.

    ``over="past"`` divides by the T - 1 past tasks (textbook, MCITlib); ``"all"`` by T, counting the last
    task's own difference of 0 (CoIN and SEFE).
    """
    size = _square(matrix)
    return _mean((matrix[-1] - np.diagonal(matrix))[: size - 1 if over == "past" else size])


def forward_transfer(
    matrix: Float[ndarray, "after asked"], *, initial: Float[ndarray, " asked"] | None
) -> float | None:
    """Accuracy on a task just before learning it, less that of the untrained model (`initial`)."""
    size = _square(matrix)
    if initial is None:
        return None
    return _mean(np.diagonal(matrix, offset=1) - initial[1:size])


def normalized_mean(matrix: Float[ndarray, "after asked"] | Sequence[Sequence[float | None]]) -> float | None:
    """Mean over tasks of the final score over the score when learned, in percent: mixes no units.

    A task that scored 0 when it was learned has nothing to keep and is left out.
    """
    table = np.asarray(matrix, dtype=np.float64)
    last, own = table[-1], np.diagonal(table)
    there = ~np.isnan(last) & ~np.isnan(own) & (own != 0)
    return float(100 * (last[there] / own[there]).mean()) if there.any() else None


def continuum_compat(matrix: Float[ndarray, "after asked"]) -> dict[str, float]:
    """Forgetting, BWT and FWT as the package continuum 1.2.7 computes them (printed by MG-CLIP and RAPF).

    Their ranges stop one or two tasks early, and "FWT" is the mean accuracy on past tasks: use them to
    compare with such logs, not to compare methods. With k tasks:
    forgetting = 1/(k-1) sum_{j<=k-3} [max_{j<=l<=k-3} R_lj - R_{k-1,j}];
    bwt = 2/(k(k-1)) sum_{i>=1} sum_{j<=i-2} (R_ij - R_jj);  fwt = 2/(k(k-1)) sum_{j<i} R_ij.
    """
    k = _square(matrix)
    if k == 1:
        return {"forgetting": 0.0, "bwt": 0.0, "fwt": 0.0}
    lost = [matrix[j : k - 2, j].max() - matrix[k - 1, j] for j in range(k - 2)]
    gained = [matrix[i, j] - matrix[j, j] for i in range(1, k) for j in range(i - 1)]
    past = [matrix[i, j] for i in range(1, k) for j in range(i)]
    pairs = k * (k - 1) / 2
    return {
        "forgetting": float(sum(lost) / (k - 1)),
        "bwt": float(sum(gained) / pairs),
        "fwt": float(sum(past) / pairs),
    }


def sefe(
    matrix: Float[ndarray, "after asked"], *, bwt: Literal["including_last", "excluding_last"] = "including_last"
) -> dict[str, float | None]:
    """MFT, MFN, MAA and BWT of the instruction-tuning papers.

    ``bwt="including_last"`` is CoIN's and SEFE's (MFN - MFT); ``"excluding_last"`` is MCITlib's,
    T/(T-1) times as large, undefined for one task.
    """
    return {
        "MFT": accuracy_when_learned(matrix),
        "MFN": last_accuracy(matrix),
        "MAA": average_accuracy(matrix),
        "BWT": backward_transfer(matrix, over="all" if bwt == "including_last" else "past"),
    }


def dynamos(
    matrix: Float[ndarray, "after asked"], *, initial: Float[ndarray, " asked"] | None = None
) -> dict[str, float | None]:
    """Accuracy, BWT, forgetting and FWT as Dynamos (and mammoth, its base) define them.

    Forgetting takes the best over all rows, the last and those before a task was learned included, and
    reads cells that were not measured as 0; so it is never negative.
    """
    size = _square(matrix)
    filled = np.nan_to_num(matrix, nan=0.0)
    return {
        "accuracy": last_accuracy(matrix),
        "bwt": backward_transfer(matrix),
        "forgetting": _mean((filled.max(axis=0) - matrix[-1])[: size - 1]),
        "fwt": forward_transfer(matrix, initial=initial),
    }


def zero_shot_transfer(matrix: Float[ndarray, "after asked"]) -> dict[str, Any]:
    """Transfer, Average and Last of streams of data sets (Zheng et al., ZSCL, 2023), and each of them by task.

    Transfer of a task is the mean of what it scored before it was learned; the first one has none. With
    ``[[80, 50, 30], [70, 90, 20], [60, 85, 95]]`` tasks transfer None, 50 and 25, together 37.5; Average is the mean of
    all cells, 64.4, and Last that of the last row, 80. A cell that was not measured makes None of what needs it.
    """
    matrix = np.asarray(matrix, dtype=float)
    tasks = _square(matrix)
    before = [None, *(_mean(matrix[:task, task]) for task in range(1, tasks))]
    average = [_mean(matrix[:, task]) for task in range(tasks)]
    last = [_mean(matrix[-1:, task]) for task in range(tasks)]

    def over(values: Sequence[float | None]) -> float | None:
        return _mean(np.array([np.nan if v is None else v for v in values])) if values else None

    return {
        "transfer": over(before[1:]),
        "average": over(average),
        "last": over(last),
        "transfer_of_tasks": before,
        "average_of_tasks": average,
        "last_of_tasks": last,
    }


def forgetting_step_by_step(matrix: Float[ndarray, "after asked"]) -> float | None:
    """Forgetting as the code of CODA-Prompt prints it: how much each past task loses from one task to the next.

    ``1/(T-1) sum_t 1/t sum_{i<t} (matrix[t-1, i] - matrix[t, i])``; None for one task.
    """
    matrix = np.asarray(matrix, dtype=float)
    tasks = _square(matrix)
    lost = [_mean(matrix[t - 1, :t] - matrix[t, :t]) for t in range(1, tasks)]
    return _mean(np.array([np.nan if v is None else v for v in lost])) if lost else None


def _square(matrix: ndarray) -> int:
    assert matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0, matrix.shape
    return matrix.shape[0]


def _mean(values: ndarray, weights: ndarray | None = None) -> float | None:
    """The mean; None if there is nothing to average or a value was not measured."""
    if values.size == 0 or np.isnan(values).any():
        return None
    return float(values.mean() if weights is None else (values * weights).sum() / weights.sum())
