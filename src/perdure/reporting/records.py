"""Metrics computed again from the records of predictions that a run saved.

Knows the files ``predictions/<after>_<asked>.jsonl``. Does not know models or data, and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perdure import metrics
from perdure.errors import DataError, RecipeError
from perdure.files.text_files import read_json_lines
from perdure.metrics import record_schemas
from perdure.reporting import load, tables
from perdure.run_folder import run_files

MOST_TASKS = 10_000
"""Tasks of a run whose number nothing says."""


def score(what: Path, names: Sequence[str] = ()) -> dict[str, Any]:
    """Metrics of a file of records, or of all such files of a run's folder.

    Args:
        names: metrics; none means those that the run measured, for a single file accuracy.

    Returns:
        ``{"rows": [{"after", "asked", "n", "values"}], "summary": {name: number}}``; rows as in scores.json,
        `summary` what is drawn together over the tasks of a run.

    Raises:
        DataError: there are no records, or a line is damaged. RecipeError: a metric does not exist or
        does not fit these records.
    """
    for name in names:
        metrics.metric(name)
    if what.is_file():
        after, asked = _place(what) or ("", "")
        return {"rows": [_row(what, after, asked, names or ["accuracy"])], "summary": {}}
    what = run_files.one_run(what)
    run = load.read(what)
    files = {place: f for f in sorted((what / "predictions").glob("*.jsonl")) if (place := _place(f))}
    if not files:
        raise DataError(
            "no predictions are kept here",
            where=str(what / "predictions"),
            expected="files such as 0_0.jsonl",
            todo="Run with evaluate.save_predictions=true.",
        )
    most = len(run.tasks) or MOST_TASKS
    if beyond := [file.name for place, file in sorted(files.items()) if not -1 <= place[0] < most > place[1]]:
        raise DataError(
            f"{beyond[0]} is named for a task that the run has not", where=str(what), expected=f"tasks 0 to {most - 1}"
        )
    measured = {(row["after"], row["asked"]): list(row["values"]) for row in run.rows}
    rows = [_row(files[p], *p, names or measured.get(p) or ["accuracy"]) for p in sorted(files)]
    size = 1 + max(max(place) for place in files)
    again = load.Run(
        folder=what,
        tasks=run.tasks or [f"task {i + 1}" for i in range(size)],
        headline=names[0] if names else run.headline,
        rows=rows,
    )
    return {"rows": rows, "summary": {n.title: value for n, value in tables.run_numbers(again).items()}}


def _row(file: Path, after: Any, asked: Any, names: Sequence[str]) -> dict[str, Any]:
    found = _records(file)
    return {
        "after": after,
        "asked": asked,
        "n": len(found),
        "values": {name: _compute(name, found, file) for name in names},
    }


def _compute(name: str, records: list[dict[str, Any]], file: Path) -> Any:
    schema = record_schemas.schema(metrics.metric(name).module)
    for number, record in enumerate(records, 1):
        run_files.check(schema, record, where=f"{file}, record {number}", todo=f"`{name}` reads such records.")
    try:
        return metrics.compute(name, records)
    except KeyError as missing:
        raise RecipeError(
            f"the records have no {missing}, which `{name}` needs",
            where=str(file),
            expected="a metric of the same kind of task",
            todo="See: perdure list metrics",
        ) from None
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as fault:  # of parts within a field
        raise DataError(
            f"`{name}` cannot be computed of these records ({fault})", where=str(file), expected="records of its kind"
        ) from fault


def _records(file: Path) -> list[dict[str, Any]]:
    found = []
    for number, record in read_json_lines(file):
        if not isinstance(record, dict):
            raise DataError("this is no record", where=f"{file}, line {number}", expected="one JSON object a line")
        found.append(record)
    if not found:
        raise DataError("holds no records", where=str(file))
    return found


def _place(file: Path) -> tuple[int, int] | None:
    """(after, asked) of a prediction file's name."""
    match = re.fullmatch(r"(-?\d+)_(\d+)", file.stem)
    return (int(match[1]), int(match[2])) if match else None
