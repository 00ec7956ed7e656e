"""What a run has become: its versions in a table.

Knows versions' files. Does not know how a table is laid out; imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perdure.run_folder import versions
from perdure.run_folder.versions import Version

COLUMNS = ("version", "parent", "time", "task", "accuracy", "earlier", "gate", "MiB", "")


def history(run: Path) -> list[list[str]]:
    """A row a version, as `COLUMNS` says; none where the run was never updated."""
    listed = versions.listed(run)
    return [cells(version) for version in listed] if len(listed) > 1 else []


def described(version: Version) -> dict[str, Any]:
    """A version, JSON-ready: its last task, its headline there and on earlier tasks, what the gate said."""
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


def cells(version: Version) -> list[str]:
    """A version as a row of the table."""
    row = described(version)
    numbers = [f"{row[key]:.2f}" if row[key] is not None else "" for key in ("new", "earlier")]
    size = "pruned" if row["pruned"] else f"{row['bytes'] / 2**20:.2f}"
    mark = "promoted" if row["current"] else ""
    parent = "" if row["parent"] is None else str(row["parent"])
    return [str(row["version"]), parent, (row["time"] or "")[:16], row["task"], *numbers, row["gate"] or "", size, mark]
