"""Settings proposed by Optuna, trial after trial, in place of every combination of a grid.

Knows Optuna's studies, which it keeps in a journal beside the runs, and trials that are ended between tasks. Does not
know processes or queues. An interrupted search goes on: trials under way keep their numbers, settings and folders.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from perdure.keys import key_seed
from perdure.sweeping import Plan, choosing, jobs, record
from perdure.sweeping import cells as runs
from perdure.sweeping.cells import Arm, Cell
from perdure.sweeping.executors import Executor
from perdure.sweeping.study import Range
from perdure.sweeping.tally import Tally, Tell, about, begin, take

STARTUP = 4
"""Trials that are never ended early: the median of fewer says little."""
ENDED: Mapping[str, jobs.State] = {"COMPLETE": "finished", "PRUNED": "pruned"}
"""Optuna's words for trials that did not fail."""


@dataclass
class Trial:
    """One setting: a run for each seed, the first of which may end it."""

    search: Search
    number: int
    cells: list[Cell]
    """By seed."""
    asked: Any
    """Optuna's."""


class Search:
    """The trials of one arm."""

    def __init__(self, arm: Arm, plan: Plan) -> None:
        self.arm, self.plan = arm, plan
        self.journal = plan.folder / "search" / f"{arm.name}.journal"
        self.study = _study(self.journal, arm.name, higher=choosing.higher_is_better(plan.metric), seeded=True)

    @property
    def told(self) -> int:
        """Trials that have come to an end."""
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    def under_way(self) -> list[Trial]:
        """Trials that an earlier call has begun."""
        import optuna

        found = [t for t in self.study.get_trials(deepcopy=False) if t.state == optuna.trial.TrialState.RUNNING]
        return [self._trial(optuna.trial.Trial(self.study, trial._trial_id)) for trial in found]

    def ask(self) -> Trial:
        """The next setting."""
        return self._trial(self.study.ask())

    def tell(self, trial: Trial, tally: Tally) -> None:
        """How a trial has ended."""
        import optuna

        states = {tally.outcomes[cell.key].state for cell in trial.cells if cell.key in tally.outcomes}
        values = (
            [choosing.score(cell.folder, self.plan.metric) for cell in trial.cells] if states == {"finished"} else []
        )
        if values and all(value is not None for value in values):
            self.study.tell(trial.asked, mean(value for value in values if value is not None))
        elif "pruned" in states:
            self.study.tell(trial.asked, state=optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(trial.asked, state=optuna.trial.TrialState.FAIL)

    def job(self, trial: Trial, cell: Cell, tally: Tally) -> jobs.Job:
        """A run of a trial; the first seed's may end it."""
        named = {
            "journal": str(self.journal.absolute()),
            "name": self.arm.name,
            "id": trial.asked._trial_id,
            "metric": self.plan.metric,
        }
        return jobs.job(
            cell, self.plan.folder, study=about(tally, cell), trial=named if cell is trial.cells[0] else None
        )

    def _trial(self, asked: Any) -> Trial:
        settings = {key: _suggest(asked, key, values) for key, values in self.plan.study.grid.items()}
        study = self.plan.study
        recipe = runs.loaded(self.arm, settings, study, choosing.overrides(study))
        name = f"{self.arm.name}-trial_{asked.number}"
        placed = runs.placed(recipe, self.plan.folder, "search", name)
        more: dict[str, Any] = {"tasks": choosing.tasks(study), "phase": "search", "trial": asked.number}
        return Trial(self, asked.number, runs.of_seeds(self.arm, settings, placed, name, **more), asked)


def through(plan: Plan, executor: Executor, tally: Tally, tell: Tell) -> None:
    """All trials of all arms, as many at once as the executor has room for."""
    searches = [Search(arm, plan) for arm in plan.arms]
    for search in searches:
        known = [t for t in record.read(plan.folder)["cells"] if t["arm"] == search.arm.name and t["phase"] == "search"]
        tally.cells += _earlier(search, known, tally)
    waiting = [trial for search in searches for trial in search.under_way()]
    active: dict[str, Trial] = {}

    def start(trial: Trial, cells: list[Cell]) -> None:
        record.note(plan.folder, plan.name, plan.study, cells)
        todo = begin(cells, tally)
        active.update({cell.key: trial for cell in cells})
        executor.submit([trial.search.job(trial, cell, tally) for cell in todo])
        for cell in cells:
            if cell not in todo:
                advance(cell.key)

    def advance(key: str) -> None:
        trial = active.pop(key)
        state = tally.outcomes[key].state
        if key == trial.cells[0].key and state == "finished" and len(trial.cells) > 1:
            start(trial, trial.cells[1:])
        elif trial not in active.values() and state not in ("stopped", "busy"):
            trial.search.tell(trial, tally)

    def next_trial() -> Trial | None:
        if waiting:
            return waiting.pop(0)
        open_ = {id(trial): trial for trial in active.values()}.values()
        for search in searches:
            begun = sum(trial.search is search for trial in open_)
            if search.told + begun < plan.study.search:
                return search.ask()
        return None

    while not (tally.stopping and not executor.busy):
        while not tally.stopping and len(active) < executor.room and (trial := next_trial()) is not None:
            start(trial, trial.cells[:1])
        if not active:
            return
        for key in take(executor, tally, tell):
            advance(key)


def pruner(trial: Mapping[str, Any]) -> Callable[[int, Path], bool]:
    """Asked after each task with the run's folder, in the process of a trial: whether it falls behind the others.

    Args:
        trial: see `jobs.Job`.
    """
    import optuna

    study = _study(Path(trial["journal"]), trial["name"])
    asked = optuna.trial.Trial(study, trial["id"])

    def behind(task: int, folder: Path) -> bool:
        value = choosing.score(folder, trial["metric"])
        if value is None:
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a resumed run tells of a task again
            asked.report(value, task)
        return asked.should_prune()

    return behind


def _study(journal: Path, name: str, *, higher: bool = True, seeded: bool = False) -> Any:
    """The study of a journal, made where there is none.

    Args:
        seeded: with a sampler whose proposals hang on the trials so far.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal.parent.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    prune = optuna.pruners.MedianPruner(n_startup_trials=STARTUP)
    direction = "maximize" if higher else "minimize"
    if not seeded:
        return optuna.load_study(study_name=name, storage=storage, pruner=prune)
    study = optuna.create_study(
        study_name=name, storage=storage, load_if_exists=True, direction=direction, pruner=prune
    )
    so_far = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=key_seed(0, "search", name, so_far) % 2**32)
    return study


def _suggest(asked: Any, key: str, values: Any) -> Any:
    """A value of a setting; of a trial under way the one that it had."""
    if not isinstance(values, Range):
        at = asked.suggest_categorical(key, list(range(len(values)))) if len(values) > 1 else 0
        return values[at]
    if values.whole:
        return asked.suggest_int(key, int(values.low), int(values.high), log=values.log)
    return asked.suggest_float(key, values.low, values.high, log=values.log)


def _earlier(search: Search, entries: list[Mapping[str, Any]], tally: Tally) -> list[Cell]:
    """Cells of trials that earlier calls have brought to an end, with how they ended."""
    import optuna

    ended = [t for t in search.study.get_trials(deepcopy=False) if t.state.is_finished()]
    found = []
    for one in ended:
        trial = search._trial(optuna.trial.Trial(search.study, one._trial_id))
        state = ENDED.get(one.state.name, "failed")
        named = {entry["folder"] for entry in entries}
        cells = [cell for cell in trial.cells if cell.key in named]
        tally.outcomes |= {cell.key: jobs.Outcome(state=state, fresh=False) for cell in cells}
        found += cells
    return found
