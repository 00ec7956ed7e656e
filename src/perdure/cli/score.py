"""`perdure score`: metrics from saved predictions, without model or data.

Knows arguments, the names of prediction files and what is printed. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.cli import _complete
from perdure.cli._layout import columns, libraries_aside, width
from perdure.files.text_files import to_json

EXAMPLES = """
perdure score runs/mg_clip-microworld/seed_0
perdure score runs/mg_clip-microworld/seed_0 --metric top5 --json
perdure score runs/mg_clip-microworld/seed_0/predictions/2_0.jsonl --metric per_class_accuracy
"""


def command(
    what: Annotated[
        Path,
        typer.Argument(
            help="file of predictions, or folder of a run", metavar="FILE|RUN", autocompletion=_complete.runs
        ),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            "-m",
            help="may be repeated [those of the run; else accuracy]",
            autocompletion=_complete.metrics,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="write JSON")] = False,
) -> None:
    """Compute metrics again from the records in a run's `predictions/`; nothing in the folder changes."""
    from perdure.reporting.records import score

    with libraries_aside():
        scored = score(what, metric or [])
    if as_json:
        print(to_json(scored, indent=1))
    else:
        print("\n".join(_lines(scored)))


def _lines(scored: dict[str, Any]) -> list[str]:
    """The rows, then what is drawn together over tasks."""
    rows = [["after", "asked", "n", "metric", "value"]]
    for row in scored["rows"]:
        for name, value in row["values"].items():
            parts = value.items() if isinstance(value, dict) else [("", value)]
            for part, number in parts:
                label = f"{name} {part}".strip()
                rows.append([str(row["after"]), str(row["asked"]), str(row["n"]), label, _number(number)])
    lines = columns(rows, total=width())
    if scored["summary"]:
        lines += ["", *columns([[name, _number(value)] for name, value in scored["summary"].items()], total=width())]
    return lines


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else "–" if value is None else str(value)
