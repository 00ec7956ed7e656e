"""Records and metrics of classification: one score a candidate, one right label.

Knows score matrices ``[examples, candidates]`` and the records made of them. Does not know models,
streams or files, and needs numpy only. Every metric is a pure function of the records, in percent.

A record: ``{"id", "target", "predicted", "top5", "confidence", "probabilities", "nll", "brier", "energy", "logit"}``;
labels are ``query.offset`` + column. Of equal scores the lowest label comes first. `confidence` is the softmax of the
scores at the predicted label, `probabilities` that of the `top5`, `nll` and `brier` the target's (`perdure.metrics.
calibration`), `energy` the log-sum-exp of the scores and `logit` the highest; where a method's scores are not logits
these only rank examples. A `target` of null is an unknown class, of which no metric here counts the answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from perdure.errors import TrainingError
from perdure.types import Example, Query

Record = dict[str, Any]


def records(scores: Any, examples: Sequence[Example], query: Query, *, own: range | None = None) -> list[Record]:
    """One record an example. ``scores``: array or tensor ``[examples, candidates]``, any float type.

    With `own`, labels among the query's, a record also has ``predicted_in_task``, the best answer among those.

    Raises TrainingError if there is not one score a candidate, or a score is NaN or the highest infinite: the
    method's state is broken, and an argmax would hide it. A score of -inf excludes a candidate.
    """
    table = _as_array(scores)
    expected = (len(examples), len(query.candidates))
    if table.shape != expected:
        raise TrainingError(
            f"the method's scores have the shape {list(table.shape)}",
            where=f"example {examples[0].id}" if examples else "",
            expected=f"[examples, candidates] = {list(expected)}",
            todo="A method that knows no class before it has learned cannot be tested then: set evaluate.start=false.",
        )
    broken = ~np.isfinite(table.max(axis=1, initial=-np.inf))
    if broken.any():
        raise TrainingError(
            "the method's scores are NaN or infinite",
            where=f"example {examples[int(broken.argmax())].id}",
            expected="a number for every candidate",
            todo="Look for a diverged loss in events.jsonl; a lower learning rate or fp32 often helps.",
        )
    best = np.argsort(-table, axis=1, kind="stable")[:, :5]
    highest = table.max(axis=1)
    energy = highest + np.log(np.exp(table - highest[:, None]).sum(axis=1))
    shares = np.exp(table - energy[:, None])
    squares = (shares**2).sum(axis=1)
    within = None
    if own is not None:
        within = table[:, own.start - query.offset : own.stop - query.offset].argmax(axis=1) + own.start
    return [
        {
            "id": example.id,
            "target": None if example.target is None else int(example.target),
            "predicted": int(top[0]) + query.offset,
            "top5": [int(i) + query.offset for i in top],
            "confidence": digits(row[top[0]], 12),
            "probabilities": [digits(p, 6) for p in row[top]],
            **_at_target(example, query, energy[i] - table[i], row, squares[i]),
            "energy": digits(energy[i], 9),
            "logit": digits(highest[i], 9),
            **({} if within is None else {"predicted_in_task": int(within[i])}),
        }
        for i, (example, top, row) in enumerate(zip(examples, best, shares, strict=True))
    ]


def record(scores: Any, example: Example, query: Query) -> Record:
    """The record of one example; ``scores`` has one entry a candidate."""
    return records(_as_array(scores)[None], [example], query)[0]


def accuracy(records: Iterable[Record]) -> float | None:
    """Percent of examples whose predicted label is the target; None of no records, as all of these."""
    return _percent([r["predicted"] == r["target"] for r in known(records)])


def accuracy_in_task(records: Iterable[Record]) -> float | None:
    """`accuracy` among the classes of the task that the example is of (Task-IL)."""
    return _percent([r.get("predicted_in_task", r["predicted"]) == r["target"] for r in known(records)])


def top5(records: Iterable[Record]) -> float | None:
    """Percent of examples whose target is among the five highest scores."""
    return _percent([r["target"] in r["top5"] for r in known(records)])


def per_class_accuracy(records: Iterable[Record]) -> dict[str, float]:
    """Percent correct for each label that occurs as a target, by label (as text, as JSON has it)."""
    hits: dict[int, list[bool]] = {}
    for r in known(records):
        hits.setdefault(r["target"], []).append(r["predicted"] == r["target"])
    return {str(label): 100.0 * sum(hits[label]) / len(hits[label]) for label in sorted(hits)}


def mean_per_class(records: Iterable[Record]) -> float | None:
    """Mean of `per_class_accuracy`: every class counts alike, however many examples it has."""
    values = list(per_class_accuracy(records).values())
    return sum(values) / len(values) if values else None


def known(records: Iterable[Record]) -> list[Record]:
    """Records of examples that have a right answer."""
    return [r for r in records if r["target"] is not None]


def digits(value: float, count: int) -> float:
    """A number to so many significant digits."""
    return float(f"{value:.{count}g}")


def _percent(hits: Sequence[bool]) -> float | None:
    return 100.0 * sum(hits) / len(hits) if hits else None


def _as_array(scores: Any) -> np.ndarray:
    """Scores in float64; a tensor is known by its `detach`, so that torch need not be imported."""
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu().double().numpy()
    return np.asarray(scores, dtype=np.float64)


def _at_target(
    example: Example, query: Query, surprise: np.ndarray, shares: np.ndarray, squares: float
) -> dict[str, float | None]:
    """``nll`` (null where the target has no probability) and ``brier`` of the right answer, where it can be given."""
    column = -1 if example.target is None else int(example.target) - query.offset
    if not 0 <= column < len(shares):
        return {"nll": None, "brier": None}
    nll = float(surprise[column])
    return {
        "nll": digits(max(nll, 0.0), 12) if math.isfinite(nll) else None,
        "brier": digits(squares - 2 * shares[column] + 1, 12),
    }
