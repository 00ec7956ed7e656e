"""Records and metrics of retrieval: one score an item of the gallery, one or more right items a query.

Knows score matrices ``[queries, gallery]`` and the records made of them. Does not know models, streams or files, and
needs numpy only. Every metric is a pure function of the records, in percent.

A record: ``{"id", "targets", "rank", "top"}``. `rank` is how many items come before the best right one; of equal
scores the lower index comes first (the published code leaves ties to the sort). `top` are the ten best items.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from perdure.errors import TrainingError
from perdure.types import Example, Query

Record = dict[str, Any]


def records(scores: Any, examples: Sequence[Example], query: Query) -> list[Record]:
    """One record a query. ``scores``: array or tensor ``[queries, gallery]``.

    Raises TrainingError if a score is not finite: a sort would hide it.
    """
    if hasattr(scores, "detach"):
        scores = scores.detach().cpu().double().numpy()
    table = np.asarray(scores, dtype=np.float64)
    expected = (len(examples), len(query.candidates))
    assert table.shape == expected, f"scores {table.shape}, expected [queries, gallery] {expected}"
    broken = ~np.isfinite(table).all(axis=1)
    if broken.any():
        raise TrainingError(
            "a score is NaN or infinite",
            where=f"query {examples[int(broken.argmax())].id}",
            expected="a number for every item of the gallery",
            todo="Lower the learning rate, or use run.precision=float32.",
        )
    order = np.argsort(-table, axis=1, kind="stable")
    return [_record(best, example) for best, example in zip(order, examples, strict=True)]


def _record(best: np.ndarray, example: Example) -> Record:
    targets = [] if example.target is None else [int(t) for t in np.atleast_1d(example.target)]
    rank = int(np.isin(best, targets).argmax()) if targets else None
    return {"id": example.id, "targets": targets, "rank": rank, "top": [int(i) for i in best[:10]]}


def recall_1(records: Iterable[Record]) -> float | None:
    """Percent of queries whose first item is right; None of no records, as all of these."""
    return _recall(records, 1)


def recall_5(records: Iterable[Record]) -> float | None:
    """Percent of queries with a right item among the first five."""
    return _recall(records, 5)


def recall_10(records: Iterable[Record]) -> float | None:
    """Percent of queries with a right item among the first ten."""
    return _recall(records, 10)


def recall_mean(records: Iterable[Record]) -> float | None:
    """Mean of the recalls at 1, 5 and 10."""
    found = list(records)
    values = [_recall(found, k) for k in (1, 5, 10)]
    return sum(v for v in values if v is not None) / 3 if found else None


def median_rank(records: Iterable[Record]) -> float | None:
    """Median place of the best right item, counted from 1."""
    ranks = [r["rank"] + 1 for r in records if r["rank"] is not None]
    return float(np.median(ranks)) if ranks else None


def _recall(records: Iterable[Record], k: int) -> float | None:
    ranks = [r["rank"] for r in records]
    return 100.0 * sum(r is not None and r < k for r in ranks) / len(ranks) if ranks else None
