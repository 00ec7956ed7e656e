"""`perdure versions`: what a run has become: versions, their scores, gates and sizes, and which one is promoted.

Knows how versions are listed. Imports no torch.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perdure.cli import _complete
from perdure.cli._layout import columns, width

if TYPE_CHECKING:
    from perdure.run_folder.versions import Version

EXAMPLES = """
perdure versions runs/mine
perdure versions runs/mine --json
perdure versions runs/mine --prune 3
"""


def command(
    run: Annotated[str, typer.Argument(help="folder of a run", metavar="RUN", autocompletion=_complete.runs)],
    as_json: Annotated[bool, typer.Option("--json", help="write JSON")] = False,
    prune: Annotated[int | None, typer.Option("--prune", min=0, help="keep the states of so many newest alone")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="compare every state with its digest")] = False,
) -> int:
    """List the versions of a run: 1 is the run itself, each update adds one.

    A pruned version keeps its scores and its history, but no state. The promoted version is never pruned. With --verify
    the exit code is 1 if a state is damaged.
    """
    from perdure.errors import RecipeError, printable
    from perdure.run_folder import promoting, versions

    folder, wanted = versions.split(run)
    if wanted or not (folder / "recipe.yaml").is_file():
        raise RecipeError("this is not a run's folder", where=run, expected="a run, without @version")
    if prune is not None:
        promoting.prune(folder, prune)
    listed = versions.listed(folder)
    if as_json:
        pointer = versions.pointer(folder)
        found = {"run": str(folder), **pointer, "versions": [_row(version) for version in listed]}
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        head = ["version", "parent", "time", "task", "accuracy", "earlier", "gate", "MiB", ""]
        print("\n".join(columns([head, *map(_cells, listed)], total=width())))
    faults = [fault for version in listed for fault in promoting.faults(version)] if verify else []
    for fault in faults:
        print(printable(fault))
    return int(bool(faults))


def _row(version: Version) -> dict[str, Any]:
    """A version in JSON: its last task, its headline there and on earlier tasks, what the gate said."""
    scores, about = version.scores, version.about
    last = len(scores.get("tasks", [])) - 1
    rows = [row for row in scores.get("rows", []) if row["after"] == last]
    headline = scores.get("headline", "")
    pairs = [(row["asked"], row["n"], row["values"].get(headline)) for row in rows]
    numbers = [(asked, n, value) for asked, n, value in pairs if isinstance(value, int | float)]
    earlier = [(n, value) for asked, n, value in numbers if asked < last]
    count = sum(n for n, _ in earlier)
    return {
        "version": version.number,
        "parent": about.get("parent"),
        "current": version.current,
        "time": about.get("time"),
        "task": (scores.get("tasks") or [""])[-1],
        "headline": headline,
        "new": next((value for asked, _, value in numbers if asked == last), None),
        "earlier": sum(n * value for n, value in earlier) / count if count else None,
        "gate": about.get("gate", {}).get("outcome"),
        "changed": about.get("changed", {}),
        "bytes": version.state.stat().st_size if version.state.is_file() else 0,
        "pruned": bool(about.get("pruned")),
    }


def _cells(version: Version) -> list[str]:
    row = _row(version)
    numbers = [f"{row[key]:.2f}" if row[key] is not None else "" for key in ("new", "earlier")]
    size = "pruned" if row["pruned"] else f"{row['bytes'] / 2**20:.2f}"
    mark = "promoted" if row["current"] else ""
    parent = "" if row["parent"] is None else str(row["parent"])
    return [str(row["version"]), parent, (row["time"] or "")[:16], row["task"], *numbers, row["gate"] or "", size, mark]
