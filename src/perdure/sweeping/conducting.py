"""A planned study goes its way: jobs to an executor, outcomes back, a setting chosen, its runs on fresh seeds.

Knows plans, executors and outcomes. Does not know where jobs run, nor what is printed of them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from perdure.errors import Interrupted, PerdureError, TrainingError
from perdure.sweeping import Plan, choosing, final_cells, jobs, record, searching, shards
from perdure.sweeping.cells import Cell
from perdure.sweeping.executors import Executor, Place
from perdure.sweeping.jobs import Outcome
from perdure.sweeping.tally import Tally, Tell, about, begin, take


def conduct(plan: Plan, place: Place | Executor, tell: Tell, *, leave: bool = False) -> Tally:
    """Run all that is not finished.

    Args:
        place: where; or who runs jobs.
        leave: hand the jobs over and do not wait, where the executor is a queue.

    Raises:
        Interrupted: stopped by the user or the scheduler; what ran has saved.
    """
    tally = Tally(plan)
    record.note(plan.folder, plan.name, plan.study, plan.cells)
    executor = make(place, plan.folder) if isinstance(place, Place) else place
    with executor, _stopping(tally):
        if plan.study.shards > 1:
            _in_shards(plan, executor, tally, tell, leave=leave)
        else:
            _through(plan.cells, executor, tally, tell, leave=leave)
        if leave:
            return tally
        if plan.study.search:
            searching.through(plan, executor, tally, tell)
        if plan.study.select != "none" and not tally.stopping:
            _choose(plan, tally)
            finals = [cell for choice in tally.choices for cell in final_cells(plan, choice)]
            record.note(plan.folder, plan.name, plan.study, finals)
            _through(finals, executor, tally, tell)
    if tally.stopping:
        done = f"{tally.count('finished')} of {len(tally.cells)} runs are finished"
        raise Interrupted(f"stopped: {done}", todo=tally.remark)
    return tally


def make(place: Place, folder: Path) -> Executor:
    """The executor of a place.

    Args:
        folder: of the sweep.

    Raises:
        MissingExtra: its library is not installed.
        RecipeError: it cannot be reached.
    """
    if place.kind == "slurm":
        from perdure.sweeping.executors.slurm import Slurm

        return Slurm(folder, place)
    if place.kind == "ray":
        from perdure.sweeping.executors.ray import Ray

        return Ray(folder, place)
    from perdure.sweeping.executors.local import Local

    return Local(folder, place)


def _through(cells: Sequence[Cell], executor: Executor, tally: Tally, tell: Tell, *, leave: bool = False) -> None:
    """All of these cells, until each has an outcome."""
    todo = begin(cells, tally)
    for cell in cells:
        if cell.key in tally.outcomes:
            record.restate(cell.folder, about(tally, cell))
    executor.submit([jobs.job(cell, tally.plan.folder, study=about(tally, cell)) for cell in todo])
    while not leave and any(cell.key not in tally.outcomes for cell in todo):
        take(executor, tally, tell)
        if tally.stopping and not executor.busy:
            return


def _in_shards(plan: Plan, executor: Executor, tally: Tally, tell: Tell, *, leave: bool) -> None:
    """The parts of all runs, each run put together when all of its parts are finished."""
    whole = begin(plan.cells, tally)
    parts = {cell.key: shards.cells(cell, plan.study.shards) for cell in whole}
    _through([part for those in parts.values() for part in those], executor, tally, tell, leave=leave)
    for cell in whole if not leave else ():
        states = [tally.outcomes[p.key].state if p.key in tally.outcomes else "stopped" for p in parts[cell.key]]
        if set(states) != {"finished"}:
            if not tally.stopping:
                said = f"{states.count('finished')} of {len(states)} shards are finished"
                tally.outcomes[cell.key] = Outcome(state="failed", said=said)
            continue
        try:
            shards.merge(cell, parts[cell.key])
            tally.outcomes[cell.key] = Outcome(state="finished")
        except PerdureError as error:
            tally.outcomes[cell.key] = Outcome(state="failed", said=str(error))
        jobs.keep(plan.folder, cell.key, tally.outcomes[cell.key])
        tell(tally, cell.key, tally.outcomes[cell.key])


def _choose(plan: Plan, tally: Tally) -> None:
    compared = [cell for cell in tally.cells if cell.phase == "search"]
    for arm in plan.arms:
        tried = record.settings_tried(plan.folder, arm.name, phase="search")
        try:
            tally.choices.append(
                choosing.choose(arm.name, compared, tally.outcomes, study=plan.study, metric=plan.metric, tried=tried)
            )
        except TrainingError as none:  # the others are chosen all the same
            tally.remark = "\n".join(filter(None, (tally.remark, str(none))))
    record.note_choices(plan.folder, tally.choices)


@contextmanager
def _stopping(tally: Tally) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM lets all that runs save and stop; the second ends it at once."""

    def ask(_number: int, _frame: Any) -> None:
        tally.asked += 1

    kept: Mapping[int, Any] = {}
    with suppress(ValueError):  # not the main thread, as in some notebooks
        kept = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
