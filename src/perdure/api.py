"""Recipes become runs on disk, and runs are opened again: what the command and a notebook call.

Knows run folders, seeds, signals and the result card. Does not know YAML, nor any method, model or stream by name.
"""

from __future__ import annotations

import contextlib
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perdure import checkpoint, device_memory, loop, recipe, recording, resuming
from perdure.errors import CheckpointError, DataError, Interrupted, MissingExtra, PerdureError, RecipeError
from perdure.files.written_whole import write_json, write_text
from perdure.loop import Scores, load_into, saved_state
from perdure.recipe import Built, Recipe
from perdure.recipe.checked import require_folders, stated
from perdure.reporting import load, markdown, report, tables
from perdure.run_folder import lock, run_files, versions
from perdure.runtime import Runtime
from perdure.runtime.placing import place
from perdure.streams import appending
from perdure.types import Query, Task


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One run that has come to its end."""

    folder: Path
    scores: Scores
    fresh: bool
    """False if it had been finished before, so that nothing was trained."""
    main: bool = True
    """False in all processes of a run but one."""


Watch = Callable[[int, Scores], bool]
"""Asked after each task but the last, when it is saved: whether to stop the run there."""


def execute(
    asked: Recipe, *, again: bool = False, quiet: bool = False, watch: Watch | None = None, study: Any = None
) -> Result:
    """Run a recipe, once for each seed; go on with whatever is under way in its folders.

    Args:
        again: make finished and unfinished runs anew.
        watch: who may stop it between tasks, beside the user.
        study: JSON-ready: of which sweep the run is a part, for its card.

    Raises:
        RecipeError: a folder holds a run of a recipe with other settings; they are named.
        BusyError: another process is at work in a folder; it is named.
        Interrupted: stopped by the user or the scheduler, after a save.
    """
    jobs = [(asked.for_seed(seed), asked.folder(seed)) for seed in asked.seeds]
    runtime = make_runtime(replace(asked, run=replace(asked.run, trackers=())), None, quiet=True)
    finished: dict[Path, Scores | None] = {}
    with contextlib.ExitStack() as held:
        runtime.main_first(lambda: finished.update(_take_folders(jobs, held, again=again)))
        for _, folder in jobs if not runtime.main else ():
            finished[folder] = finished_scores(folder)
        after = [sum(finished[later] is None for _, later in jobs[i + 1 :]) for i in range(len(jobs))]
        named = [
            f"seed {one.run.seed} ({i} of {len(jobs)})" if len(jobs) > 1 else "" for i, (one, _) in enumerate(jobs, 1)
        ]
        return Result(
            _execute_one(one, folder, finished[folder], (name, more), quiet=quiet, watch=watch, study=study)
            for (one, folder), name, more in zip(jobs, named, after)
        )


def _take_folders(
    jobs: Sequence[tuple[Recipe, Path]], held: contextlib.ExitStack, *, again: bool
) -> dict[Path, Scores | None]:
    """Hold every folder in which there is work to do, emptied if it is to be done again; what is finished already."""
    finished = {folder: None if again else finished_scores(folder) for _, folder in jobs}
    for one, folder in jobs:
        if finished[folder] is None:
            held.enter_context(lock.held(folder))
        if not again:
            resuming.require_same_settings(one, folder)
    for folder, scores in finished.items():
        if again:
            resuming.require_no_versions(folder)
            resuming.clear(folder)
        if scores is None:
            checkpoint.sweep(folder)
    return finished


class Result(tuple[Finished, ...]):
    """What `execute` and ``perdure.run`` return: one `Finished` a seed; shown as the table of scores over the seeds,
    the published numbers beside ours, in Markdown."""

    @property
    def folder(self) -> Path:
        """The folder of the only run, or that of the runs' folders where there are several seeds."""
        return self[0].folder if len(self) == 1 else self[0].folder.parent

    @property
    def mean(self) -> float:
        """The first task's first metric, averaged over tasks as the table says it, and then over the seeds; that of the
        last test where the plan gives no average, as for a single task.

        Raises:
            DataError: no number was measured.
        """
        found = [tables.average(load.read(one.folder)) for one in self]
        if any(value is None for value in found):
            raise DataError("there is no number to average", where=str(self.folder), expected="a finished test")
        return tables.summarize([value for value in found if value is not None]).mean

    def frame(self) -> Any:
        """Every number of every test as a pandas DataFrame: columns ``seed``, ``after`` (the task learned last, from 0;
        -1 before the first), ``asked`` (the task tested), ``task`` (its name), ``n`` (examples), ``metric``, ``value``.

        Raises:
            MissingExtra: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise MissingExtra("a frame needs pandas", todo='Type: pip install "perdure[frame]"') from None
        read = [load.read(one.folder) for one in self]
        rows = [
            (run.seed, row["after"], row["asked"], run.tasks[row["asked"]], row["n"], metric, value)
            for run in read
            for row in run.rows
            for metric, value in row["values"].items()
        ]
        return pandas.DataFrame(rows, columns=["seed", "after", "asked", "task", "n", "metric", "value"])

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return all(one.main for one in self)

    def pages(self) -> dict[str, Path]:
        """The report of all seeds, in the folder above theirs: file name -> path."""
        folders = [one.folder for one in self]
        return report(folders, folders[0].parent)

    def __str__(self) -> str:
        return markdown.markdown(tables.groups([load.read(one.folder) for one in self]))

    def _repr_markdown_(self) -> str:
        return str(self)


def run(
    asked: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    again: bool = False,
    quiet: bool = False,
    name: str | None = None,
    **sections: Any,
) -> Result:
    """``perdure.run``: a recipe with its settings changed, run as ``perdure run`` does.

    Args:
        asked: a recipe's name or file, a run's folder, a mapping as YAML would hold it, or a loaded recipe.
        overrides: as on the command line, ``method.lr=1e-4``.
        again: make finished and unfinished runs anew.
        quiet: no progress.
        name: of the run's folder, ``run.name``.
        **sections: settings as mappings, ``method={"lr": 1e-4}``, or names, ``method="er"``.

    Raises:
        RecipeError: all faults of the recipe at once; or as `execute`, with `BusyError` and `Interrupted`.
    """
    loaded = stated(asked, overrides, name=name, sections=sections)
    require_folders(loaded, again=again)
    return execute(loaded, again=again, quiet=quiet)


@dataclass(frozen=True)
class Opened:
    """A run's method with what it has learned, and a runtime that writes nothing. Its data need not be there."""

    folder: Path
    recipe: Recipe
    method: Any
    models: dict[str, Any]
    runtime: Runtime
    query: Query
    """The question that the last finished task was tested with: all classes seen, say."""
    done: int = 0
    """Tasks that are finished."""
    tasks: int = 0
    """Of the whole stream."""
    temperature: float | None = None
    """Of its probabilities (`calibration`); None where none was fitted, or where tasks have come since."""


def reopen(run: str | Path, *, device: str = "auto") -> Opened:
    """A run as it stood after the last task that it finished.

    Args:
        run: its folder, which stands for the promoted version; or ``RUN@3``, ``RUN@candidate`` (`versions.resolve`).

    Raises:
        CheckpointError: it has no finished task.
        RecipeError: it has no such version.
    """
    folder = versions.resolve(run).folder
    asked = recipe.load(_recipe_file(folder))
    saved = saved_state(folder)
    if saved is None:
        raise CheckpointError("no task of this run is finished", where=str(folder), todo=f"Type: perdure run {folder}")
    method, models = recipe.build_method(asked, asked.run.seed)
    load_into(method, saved, folder)
    runtime = Runtime(
        seed=asked.run.seed,
        device=device,
        precision=asked.run.precision,
        matmul=asked.run.matmul,
        quiet=True,
        unreadable="skip",
    )
    place(method, runtime)
    query = Query(**saved["query"] | {"candidates": tuple(saved["query"]["candidates"])})
    done, tasks = saved["task"] + 1, len(saved["names"])
    temperature = run_files.read_calibration(folder).get("temperature") if done == tasks else None
    return Opened(folder, asked, method, models, runtime, query, done, tasks, temperature)


def _execute_one(
    asked: Recipe, folder: Path, finished: Scores | None, place: tuple[str, int], *, quiet: bool, **part: Any
) -> Finished:
    runtime = make_runtime(asked, folder, quiet=quiet)
    if finished is not None:
        if said := resuming.require_same_data_if_there(asked, [folder]):
            runtime.say(f"{folder}: {said}")
        return Finished(folder=folder, scores=finished, fresh=False, main=runtime.main)
    runtime.of_runs, runtime.runs_after = place
    scores = go_through(asked, recipe.build(asked, asked.run.seed), runtime, folder, leaves=True, **part)
    if runtime.runs_after and runtime.agreed(runtime.stop_requested):
        raise Interrupted(f"stopped after {runtime.of_runs}")
    return Finished(folder=folder, scores=scores, fresh=True, main=runtime.main)


def go_through(
    asked: Recipe,
    built: Built,
    runtime: Runtime,
    folder: Path,
    *,
    leaves: bool = False,
    watch: Watch | None = None,
    study: Any = None,
) -> Scores:
    """Learn and test what is not done yet in a run's folder, with all that the folder says of it.

    Args:
        leaves: each task leaves a version (`perdure.run_folder.leaving`).
        watch, study: see `execute`.

    Raises:
        RecipeError: the folder holds a run on other data.
        Interrupted: stopped, after a save.
    """
    resuming.require_same_data(built.stream.manifest, folder)
    leaves = leaves and recording.leaves_versions(asked, built)
    runtime.wait()
    if runtime.main:
        write_json(folder / "data.json", built.stream.manifest)
        own = {"version": len(built.stream)} if leaves else {}
        write_json(folder / "tasks.json", appending.known(built.stream) | own)
        write_text(folder / "recipe.yaml", recipe.to_yaml(asked))
    runtime.log("session", device=str(runtime.device), processes=runtime.processes)
    runtime.flush()
    recording.say_notes(built.models, runtime)
    with _Noting(runtime), stopping_on_signals(runtime), device_memory.explained(asked, runtime):
        given: dict[str, Any] = {"evaluation": asked.evaluate, "runtime": runtime}
        if leaves and len(built.stream) > 1:
            recording.say_sizes(asked, built, runtime, folder)
            given["left"] = lambda task, scores: recording.leave(asked, built, task, scores, runtime, folder)
        if watch is not None:
            given["left"] = _watched(given.get("left"), watch, runtime)
        scores = loop.run(built.method, built.stream, **given)
        if runtime.main:
            card = recording.card(asked, built, scores, runtime, folder)
            write_json(folder / "card.json", card if study is None else card | {"study": study})
    runtime.wait()
    return scores


def _watched(leave: loop.Left | None, watch: Watch, runtime: Runtime) -> loop.Left:
    def left(task: Task, scores: Scores) -> None:
        if leave is not None:
            leave(task, scores)
        runtime.stop_requested = runtime.stop_requested or watch(task.index, scores)

    return left


def make_runtime(asked: Recipe, folder: Path | None, *, quiet: bool = False) -> Runtime:
    """The runtime that a recipe's `run` section describes."""
    settings = asked.run
    beside = {"trackers": settings.trackers, "features": settings.features}
    return Runtime(**settings.for_runtime(), **beside, out=folder, quiet=quiet)


@contextlib.contextmanager
def stopping_on_signals(runtime: Runtime) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM, from a scheduler) asks the run to save and stop; the second stops at once."""

    asked: list[float] = []

    def ask(number: int, _frame: Any) -> None:
        repeated = runtime.processes > 1 and asked and time.monotonic() - asked[0] < 3  # by what started the processes
        if runtime.stop_requested and not repeated:
            raise KeyboardInterrupt
        asked.append(time.monotonic())
        runtime.stop_requested = True
        if not repeated:
            runtime.say(f"{signal.Signals(number).name}: saving after this step; once more stops at once")

    kept = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not the main thread, as in some notebooks
            kept[number] = signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class _Noting:
    """What ends a run stands in its ``log.txt``, too; what is no message for a user, with its trace."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, PerdureError):
            self.runtime.note(str(error))
        elif error is not None:
            self.runtime.note("".join(traceback.format_exception(kind, error, trace)).rstrip())


def finished_scores(folder: Path) -> Scores | None:
    """What a finished run has come to; None if it is not finished."""
    saved = resuming.finished_scores(folder)
    return None if saved is None else Scores(saved["tasks"], saved["headline"], saved["rows"])


def _recipe_file(folder: Path) -> Path:
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise RecipeError("this is not a run's folder", where=str(folder), expected="recipe.yaml in it")
    return file
