"""The report's numbers for programs: every measured cell as CSV, every merged number as JSON.

Knows the shapes of these two files, which are a promise to their readers. Does not draw.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from perdure.reporting.published import published
from perdure.reporting.tables import Group, all_comparisons, all_numbers, differing, warnings, winners

COLUMNS = ("run", "method", "seed", "after", "after_task", "asked", "asked_task", "metric", "n", "value")


def scores_csv(groups: Sequence[Group]) -> str:
    """One line a run, cell and metric; `after` is -1 before the first task."""
    lines: list[Sequence[Any]] = []
    for group in groups:
        for run in group.runs:
            for row in run.rows:
                after, asked = (run.tasks[i] if 0 <= i < len(run.tasks) else "" for i in (row["after"], row["asked"]))
                where = [run.name, group.label, run.seed, row["after"], after, row["asked"], asked]
                numbers = [(m, v) for m, v in row["values"].items() if isinstance(v, int | float)]
                lines += [[*where, metric, row.get("n"), value] for metric, value in numbers]
    return csv_text(COLUMNS, lines)


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Comma-separated text with a header; None is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([columns, *(["" if v is None else v for v in row] for row in rows)])
    return out.getvalue()


def report_json(groups: Sequence[Group]) -> str:
    """Groups with their numbers (per seed and merged), comparisons, published numbers, warnings."""
    best = winners(groups, all_numbers(groups))
    tree = {
        "groups": [_group(group) for group in groups],
        "comparisons": [asdict(c) for c in all_comparisons(groups)],
        "winners": [{**asdict(number), "label": label} for number, label in best.items()],
        "settings_that_differ": differing([group.runs[0] for group in groups]),
        "warnings": warnings(groups),
    }
    return json.dumps(tree, indent=1, ensure_ascii=False, default=str) + "\n"


def _group(group: Group) -> dict[str, Any]:
    return {
        "label": group.label,
        "runs": [run.name for run in group.runs],
        "numbers": [
            {**asdict(number), **asdict(one), "values": {str(s): v for s, v in group.numbers[number].items()}}
            for number, one in group.summaries.items()
        ],
        "published": [{"name": p.name, "value": p.value, "source": p.source} for p in published(group)],
    }
