"""What a study will cost: by its own runs that are finished, else by a forecast of one run of each recipe and method.

Knows finished runs' cards and sizes, and `perdure check --forecast`, which measures in a process of its own. Does not
know how a run is measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from perdure import recipe as recipes
from perdure.run_folder import run_files
from perdure.sweeping import Plan, record
from perdure.sweeping.cells import Cell


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of what is to do."""

    seconds: float
    """Of all runs, one after another."""
    disk: int
    """Bytes."""
    memory: int
    """Peak bytes of the largest run that was measured; 0: not known."""
    basis: str
    each: dict[str, float]
    """Seconds of a run, by recipe and method."""


def cost(plan: Plan, *, measure: bool) -> Cost | None:
    """The cost of the runs that are not finished; None where nothing is known, or nothing is to do.

    Args:
        measure: forecast one run of each recipe and method none of whose runs is finished: seconds to minutes each.
    """
    todo = plan.todo
    by_arm = {arm.name: [cell for cell in todo if cell.arm == arm.name] for arm in plan.arms}
    done = {arm.name: _finished([c for c in plan.cells if c.arm == arm.name and c not in todo]) for arm in plan.arms}
    seconds, disk, memory, bases, each = 0.0, 0.0, 0, [], {}
    for arm, cells in by_arm.items():
        if not cells:
            continue
        found = done[arm] or (_forecast(cells[0]) if measure else None)
        if found is None:
            return None
        each[arm] = found[0]
        seconds, disk, memory = seconds + found[0] * len(cells), disk + found[1] * len(cells), max(memory, found[2])
        bases.append("finished runs" if done[arm] else "a forecast")
    if not bases:
        return None
    basis = "by " + " and ".join(dict.fromkeys(bases)) + " of each recipe and method"
    return Cost(seconds=seconds, disk=int(disk), memory=memory, basis=basis, each=each)


def _finished(cells: Sequence[Cell]) -> tuple[float, float, int] | None:
    """Mean seconds and bytes of finished runs, and the largest memory."""
    folders = [cell.folder for cell in cells if record.reached(cell.folder, None)]
    cards = [run_files.read_card(folder) for folder in folders]
    if not cards:
        return None
    peaks = [max((int(v or 0) for v in card.get("peak_memory", {}).values()), default=0) for card in cards]
    sizes = [sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in folders]
    return mean(float(card.get("wall_seconds") or 0) for card in cards), mean(sizes), max(peaks)


def _forecast(cell: Cell) -> tuple[float, float, int] | None:
    """Seconds, bytes and memory of a run that has not begun; None where it cannot be measured."""
    with tempfile.TemporaryDirectory(prefix="perdure-forecast-") as folder:
        file = Path(folder) / "cell.yaml"
        file.write_text(recipes.to_yaml(cell.recipe), encoding="utf-8")
        command = [sys.executable, "-m", "perdure", "check", str(file), "--forecast", "--json"]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        return None
    found = json.loads(told.stdout)
    return found["seconds"], found["disk"], max(found["memory"].values())
