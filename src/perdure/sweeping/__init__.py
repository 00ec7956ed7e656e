"""Many runs from one command: a grid of settings, methods and seeds, on one machine or many, and a setting chosen well.

Knows a study's phases: its runs; where a setting is chosen, those that are compared by validation examples, then the
runs of the chosen ones on fresh seeds. Does not know processes or queues (`executors`), nor what is printed. Imports no
torch; the data's readers may.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from perdure.errors import MissingExtra, RecipeError
from perdure.files.folders import require_folder
from perdure.recipe import Recipe
from perdure.sweeping import cells as runs
from perdure.sweeping import choosing, record, shards
from perdure.sweeping.cells import Arm, Cell, Faults
from perdure.sweeping.study import Study

__all__ = ["Plan", "plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study all of whose runs were checked."""

    study: Study
    name: str
    folder: Path
    """Of the sweep."""
    arms: list[Arm]
    cells: list[Cell]
    """Of the first phase; empty with `search`, whose settings are proposed as it goes."""
    first: Mapping[str, Recipe] = field(default_factory=dict)
    """Arm -> its recipe with the first values of the grid."""
    metric: str = ""
    """By which is chosen; empty where nothing is."""

    @property
    def later(self) -> int:
        """Runs that come of the first phase: trials, and final runs on fresh seeds."""
        if self.study.select == "none":
            return 0
        finals = sum(len(choosing.fresh_seeds(self.study, one.seeds)) for one in self.first.values())
        return finals + self.study.search * sum(len(one.seeds) for one in self.first.values())

    @property
    def todo(self) -> list[Cell]:
        """Those of `cells` that are not finished."""
        return [cell for cell in self.cells if not record.reached(cell.folder, cell.tasks)]

    def about(self, cell: Cell) -> dict[str, Any]:
        """What a run's card says of its sweep."""
        tried = max(record.settings_tried(self.folder, cell.arm, phase=cell.phase), 1)
        grid = {
            key: list(v) if isinstance(v, tuple) else f"{v.low:g}..{v.high:g}" for key, v in self.study.grid.items()
        }
        return {"sweep": self.name, "phase": cell.phase, "select": self.study.select, "settings": tried, "grid": grid}


def plan(study: Study, places: Mapping[str, str], *, data: bool = True) -> Plan:
    """All runs of a study, none of which has begun.

    Args:
        places: what messages call the place of a setting.
        data: also read the data, and see that the methods can go through its tasks.

    Raises:
        RecipeError: all faults of all runs at once.
    """
    faults = Faults()
    _require_extras(study, faults)
    arms = runs.arms(study, faults)
    settings = list(runs.grid(study))
    first: dict[str, Recipe] = {}
    more = choosing.overrides(study)
    for arm in arms:
        for one in [{**end, **one} for one in settings for end in _ends(study)]:
            found = faults.of(lambda arm=arm, one=one: runs.loaded(arm, one, study, more), places=places)
            if found is not None:
                first.setdefault(arm.name, found)
    faults.settle()
    if not first:
        raise RecipeError("there is nothing to run", where="sweep", expected="a recipe")
    start = next(iter(first.values()))
    name = study.name or f"{start.run.name}-sweep"
    folder = start.run.out / name
    cells = [] if study.search else [c for arm in arms for one in settings for c in _cells(arm, one, study, folder)]
    checked = cells or [c for arm in arms for c in _cells(arm, _ends(study)[0], study, folder)]
    faults.of(lambda: require_folder(folder, setting="run.out"))
    cut = partial(shards.require, count=study.shards) if study.shards > 1 else None
    streams = runs.require(checked, faults, data=data or study.shards > 1, also=cut)
    metric = _metric(study, streams, faults) if study.select != "none" else ""
    faults.settle()
    return Plan(study=study, name=name, folder=folder, arms=arms, cells=cells, first=first, metric=metric)


def final_cells(found: Plan, choice: choosing.Choice) -> list[Cell]:
    """The runs of what was chosen, on fresh seeds."""
    arm = next(arm for arm in found.arms if arm.name == choice.arm)
    asked = runs.placed(runs.loaded(arm, choice.settings, found.study), found.folder, "chosen", choice.name)
    seeds = choosing.fresh_seeds(found.study, choice.seeds)
    return runs.of_seeds(arm, choice.settings, asked, choice.name, seeds=seeds, phase="chosen")


def _cells(arm: Arm, settings: Mapping[str, Any], study: Study, folder: Path) -> list[Cell]:
    asked = runs.loaded(arm, settings, study, choosing.overrides(study))
    name = runs.named(arm, settings, study.grid)
    phase: runs.Phase = "grid" if study.select == "none" else "search"
    # Shards see each image once; a feature made in another batch may differ in its last digit.
    placed = runs.placed(asked, folder, phase, name, share=study.shards == 1)
    return runs.of_seeds(arm, settings, placed, name, tasks=choosing.tasks(study), phase=phase)


def _ends(study: Study) -> list[dict[str, Any]]:
    """The lower ends of all ranges, and the upper ones: settings that a search may propose."""
    ranges = {key: value for key, value in study.grid.items() if not isinstance(value, tuple)}
    both = [{key: getattr(one, end) for key, one in ranges.items()} for end in ("low", "high")]
    both = [{key: int(value) if ranges[key].whole else value for key, value in one.items()} for one in both]
    return both if ranges else [{}]


def _metric(study: Study, streams: Sequence[Any], faults: Faults) -> str:
    """The metric by which is chosen: the one asked for, or the headline of all streams."""
    found = list(dict.fromkeys(stream.tasks[0].metrics[0] for stream in streams))
    if not study.metric and len(found) != 1:
        what = f"the recipes have {len(found)} headlines ({', '.join(found)})" if found else "the headline is not known"
        faults.note(RecipeError(what, where="--metric", expected="the metric by which is chosen"))
        return ""
    metric = study.metric or found[0]
    faults.of(lambda: choosing.higher_is_better(metric))
    return metric


def _require_extras(study: Study, faults: Faults) -> None:
    from importlib.util import find_spec

    if study.search and find_spec("optuna") is None:
        faults.note(MissingExtra("--search needs Optuna", todo='Type: pip install "perdure[search]"'))
