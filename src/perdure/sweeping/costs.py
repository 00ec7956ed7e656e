"""What a study will cost: by its own runs that are finished.

Knows finished runs' cards and sizes. Does not know how to forecast a run that never was: until then it says so.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from perdure.run_folder import run_files
from perdure.sweeping import Plan, record
from perdure.sweeping.executors import Place


def cost(plan: Plan, place: Place) -> str:
    """Hours and disk of what is to do, in words; empty where nothing is."""
    todo = plan.todo
    if not todo:
        return ""
    known = [cell.folder for cell in plan.cells if cell not in todo and record.reached(cell.folder, None)]
    if not known:
        return "their time and disk are not known before the first is finished"
    seconds = mean(float(run_files.read_card(folder).get("wall_seconds") or 0) for folder in known) * len(todo)
    size = mean(_bytes(folder) for folder in known) * len(todo)
    at_once = max(place.jobs or len(place.gpus) or 1, 1)
    return f"about {_hours(seconds / at_once)}, {size / 2**30:.2g} GiB, by the {len(known)} that are finished"


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{max(seconds / 60, 0.1):.2g} minutes"
