"""How often a method that is not told which task an example is of finds it out.

Knows records with ``task`` and ``inferred``, names both. Does not know how tasks are inferred.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def task_accuracy(records: Iterable[dict[str, Any]]) -> float:
    """Percent of the examples whose inferred task is the one tested."""
    rows = list(records)
    return 100 * sum(row["inferred"] == row["task"] for row in rows) / max(len(rows), 1)
