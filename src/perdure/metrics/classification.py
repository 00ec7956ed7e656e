"""Records and metrics of classification: one score a candidate, one right label.

Knows score matrices ``[examples, candidates]`` and the records made of them. Does not know models,
streams or files, and needs numpy only. Every metric is a pure function of the records, in percent.

A record: ``{"id", "target", "predicted", "top5", "confidence"}``; labels are ``query.offset`` + column.
Of equal scores the lowest label comes first. `confidence` is the softmax of the scores at the predicted
label; where a method's scores are not logits it only ranks examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from perdure.errors import TrainingError
from perdure.types import Example, Query

Record = dict[str, Any]


def records(scores: Any, examples: Sequence[Example], query: Query) -> list[Record]:
    """One record an example. ``scores``: array or tensor ``[examples, candidates]``, any float type.

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
    confidence = _softmax_at(table, best[:, 0])
    return [
        {
            "id": example.id,
            "target": None if example.target is None else int(example.target),
            "predicted": int(top[0]) + query.offset,
            "top5": [int(i) + query.offset for i in top],
            "confidence": round(float(sure), 6),
        }
        for example, top, sure in zip(examples, best, confidence, strict=True)
    ]


def record(scores: Any, example: Example, query: Query) -> Record:
    """The record of one example; ``scores`` has one entry a candidate."""
    return records(_as_array(scores)[None], [example], query)[0]


def accuracy(records: Iterable[Record]) -> float | None:
    """Percent of examples whose predicted label is the target; None of no records, as all of these."""
    return _percent([r["predicted"] == r["target"] for r in records])


def top5(records: Iterable[Record]) -> float | None:
    """Percent of examples whose target is among the five highest scores."""
    return _percent([r["target"] in r["top5"] for r in records])


def per_class_accuracy(records: Iterable[Record]) -> dict[str, float]:
    """Percent correct for each label that occurs as a target, by label (as text, as JSON has it)."""
    hits: dict[int, list[bool]] = {}
    for r in records:
        hits.setdefault(r["target"], []).append(r["predicted"] == r["target"])
    return {str(label): 100.0 * sum(hits[label]) / len(hits[label]) for label in sorted(hits)}


def mean_per_class(records: Iterable[Record]) -> float | None:
    """Mean of `per_class_accuracy`: every class counts alike, however many examples it has."""
    values = list(per_class_accuracy(records).values())
    return sum(values) / len(values) if values else None


def _percent(hits: Sequence[bool]) -> float | None:
    return 100.0 * sum(hits) / len(hits) if hits else None


def _as_array(scores: Any) -> np.ndarray:
    """Scores in float64; a tensor is known by its `detach`, so that torch need not be imported."""
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu().double().numpy()
    return np.asarray(scores, dtype=np.float64)


def _softmax_at(table: Float[np.ndarray, "examples candidates"], columns: np.ndarray) -> Float[np.ndarray, " examples"]:
    shifted = np.exp(table - table.max(axis=1, keepdims=True))
    return np.take_along_axis(shifted, columns[:, None], axis=1)[:, 0] / shifted.sum(axis=1)
