"""What a run has come to, from its files alone.

Knows `scores.json` and `card.json`. Does not know how it is laid out; imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

PLACES = ("runs", ".")
"""Folders in which runs are looked for."""


def state(folder: Path) -> dict[str, Any]:
    """Folder, state, last scores, device and weights of a run; empty if this is no run's folder."""
    from perdure.run_folder import lock, run_files

    if not (folder / "recipe.yaml").is_file():
        return {}
    state: dict[str, Any] = {"folder": str(folder)}
    scores, card = run_files.read_scores(folder), run_files.read_card(folder)
    rows = scores.get("rows", [])
    done = max((row["after"] for row in rows), default=-1) + 1
    total = len(scores.get("tasks", []))
    state["state"] = "finished" if card else f"{done} of {total} tasks" if total else "no task finished"
    if at_work := lock.holder(folder):
        state["running"] = str(at_work)
    state |= _last(rows, done)
    for key in ("device", "precision", "wall_seconds", "recipe_sha256"):
        if key in card:
            state[key] = card[key]
    for role, facts in card.get("weights", {}).items():
        state[f"weights of {role}"] = json.dumps(facts, ensure_ascii=False)
    return state


def entries() -> list[dict[str, Any]]:
    """Name (the folder), summary and needs of each run below `PLACES`, as `perdure list` lays things out."""
    from perdure.errors import PerdureError
    from perdure.run_folder.run_files import runs_below

    found = {folder for place in PLACES for folder in runs_below(Path(place)) if folder != Path(".")}
    items = []
    for folder in sorted(found):
        try:
            known = state(folder)
        except PerdureError as damaged:
            known = {"state": str(damaged)}
        said = [f"{key} {value}" for key, value in known.items() if " after task " in key]
        running = ["running"] if "running" in known else []
        summary = "; ".join([known.get("state", "without recipe.yaml"), *running, *said])
        items.append({"name": str(folder), "summary": summary, "needs": ""})
    return items


def _last(rows: Sequence[Mapping[str, Any]], done: int) -> dict[str, str]:
    """Means over the tasks tested last, weighted by their examples, of each task's first metric that is a number."""
    found: dict[str, list[tuple[float, int]]] = {}
    for row in (row for row in rows if row["after"] == done - 1):
        numbers = ((name, value) for name, value in row["values"].items() if isinstance(value, int | float))
        for name, value in islice(numbers, 1):
            found.setdefault(name, []).append((value, row["n"]))
    counts = {name: sum(n for _, n in pairs) for name, pairs in found.items()}
    return {
        f"{name} after task {done}": f"{sum(v * n for v, n in pairs) / max(counts[name], 1):.2f} "
        f"({counts[name]} examples)"
        for name, pairs in found.items()
    }
