"""One setting out of many, by validation examples alone: never by the test that a study reports.

Knows scores of runs on validation examples and their means over seeds. Does not know how runs are made; imports no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from perdure import metrics
from perdure.errors import RecipeError, TrainingError
from perdure.reporting import load, tables
from perdure.sweeping.cells import Cell
from perdure.sweeping.jobs import Outcome
from perdure.sweeping.study import Study


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen for a recipe and method, among what, and by what."""

    arm: str
    name: str
    settings: Mapping[str, Any]
    by: str
    """`validation` or `first-task`."""
    metric: str
    value: float
    """Of the chosen one: mean over seeds on validation examples."""
    seeds: tuple[int, ...]
    """By which it was chosen."""
    tried: int
    """Settings in all, those that failed or were ended early included."""
    pruned: int = 0
    failed: int = 0
    search: bool = False
    """Proposed by Optuna; else every combination of a grid."""


def overrides(study: Study) -> list[str]:
    """Settings under which runs are compared: they see no test example."""
    return ["evaluate.split=validation", "evaluate.plan=seen", "evaluate.start=false"] if study.select != "none" else []


def tasks(study: Study) -> int | None:
    """After how many tasks a compared run ends; None: after all."""
    return 1 if study.select == "first-task" else None


def score(folder: Path, metric: str) -> float | None:
    """The number by which a run is compared: a metric, drawn together over its tasks as tables do; None if there is
    none yet.

    Args:
        metric: empty: the headline.
    """
    run = load.read(folder)
    found = {n.aggregate: v for n, v in tables.run_numbers(run).items() if n.metric == (metric or run.headline)}
    return next((found[aggregate] for aggregate in tables.AVERAGES if aggregate in found), None)


def higher_is_better(metric: str) -> bool:
    """Raises RecipeError: there is no such metric."""
    entry = metrics.find(metric)
    if entry is None:
        raise RecipeError(f"there is no metric `{metric}`", where="metric", todo="See: perdure list metrics")
    return entry.direction == "up"


def choose(
    arm: str, cells: Sequence[Cell], outcomes: Mapping[str, Outcome], *, study: Study, metric: str, tried: int
) -> Choice:
    """The best setting of an arm among those whose seeds are all finished; of equals the first.

    Args:
        metric: its name, the headline's where none was asked for.
        tried: settings in all calls of the sweep.

    Raises:
        TrainingError: none is finished.
    """
    by_name: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.arm == arm:
            by_name.setdefault(cell.name, []).append(cell)
    states = {
        name: {outcomes[c.key].state if c.key in outcomes else "" for c in group} for name, group in by_name.items()
    }
    values = {}
    for name, group in by_name.items():
        found = [score(cell.folder, metric) for cell in group] if states[name] == {"finished"} else [None]
        if all(value is not None for value in found):
            values[name] = mean(value for value in found if value is not None)
    if not values:
        raise TrainingError(
            "no setting came to its end, so none can be chosen", where=arm, todo="Look at: perdure sweep status"
        )
    best = (max if higher_is_better(metric) else min)(values, key=lambda name: values[name])
    return Choice(
        arm=arm,
        name=best,
        settings=by_name[best][0].settings,
        by=study.select,
        metric=metric,
        value=values[best],
        seeds=tuple(cell.seed for cell in by_name[best]),
        tried=max(tried, len(by_name)),
        pruned=sum("pruned" in found for found in states.values()),
        failed=sum(bool(found & {"failed", "lost"}) for found in states.values()),
        search=bool(study.search),
    )


def fresh_seeds(study: Study, seeds: Sequence[int]) -> tuple[int, ...]:
    """Seeds of the chosen setting's runs: none by which it was chosen."""
    return study.fresh or tuple(range(max(seeds) + 1, max(seeds) + 1 + len(seeds)))
