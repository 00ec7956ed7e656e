"""A finished run is taught one more task: a candidate is learned, judged by a gate, and promoted or not.

Knows runs, versions and the order of what happens, so that a kill at any moment leaves the promoted version as it was.
Learning is `perdure.loop`'s, over one task more; what stands against an update is known before work (`planned`).

All work is done in ``versions/.work``, a run's folder that begins with the parent's state. When the gate has decided,
the decision is written into it, it is renamed to the next number, and the pointer follows.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perdure import api, checkpoint, recipe, resuming
from perdure import gate as gates
from perdure.api import Result
from perdure.errors import RecipeError
from perdure.files.sizes import in_words
from perdure.files.text_files import read_json
from perdure.files.written_whole import sync, write_json
from perdure.gate import Gate
from perdure.recipe import Built, Recipe
from perdure.run_folder import leaving, lock, promoting, run_files, versions
from perdure.run_folder.run_files import checkpoint_file
from perdure.run_folder.versions import Version
from perdure.streams import appending, contents
from perdure.updating import judging, kept_tests
from perdure.updating.planned import Planned, chain, plan, require_fit, with_kept_tests

__all__ = ["Planned", "fork", "plan", "update"]


def update(
    run: str | Path,
    data: str | Path | Mapping[str, Any],
    *,
    test: str | Path | Mapping[str, Any] | None = None,
    name: str = "",
    teaches: str = "",
    renames: Mapping[str, str] | None = None,
    gate: Gate | Mapping[str, Any] | str | Path | None = None,
    promote: str = "auto",
    overrides: Sequence[str] = (),
    quiet: bool = False,
    abandon: bool = False,
) -> Version:
    """``perdure.update``: teach a finished run one more task, and promote the new version if its gate passes.

    Args:
        run: its folder; the parent is its promoted version.
        data: a path (`perdure.data.fitting`), or a data set as a recipe names it, ``{"name": "image_folder", ...}``.
        test: other data to test the new task with; else the data's own test examples, or a share of them.
        name: of the task.
        teaches: ``classes`` or ``domain``; empty: as the run's stream does.
        renames: a class's name in the data -> the known class that it means, or itself for a new one.
        gate: rules, or the file of them; None: the defaults.
        promote: ``auto``: if the gate passes; ``never``; ``always``.
        overrides: ``method.epochs=2``, ``task.test_share=0.3``, ``data.KEY=...`` as on the command line.
        abandon: drop another update that is under way.

    Returns:
        The new version; ``.current`` says whether it is promoted, ``.about["gate"]`` what the gate found.

    Raises:
        RecipeError, DataError, CheckpointError: what stands against it, before any work.
        BusyError: another update is at work.
        Interrupted: stopped after a save; the same call goes on.
    """
    folder = _run_of(run, promote)
    asked: dict[str, Any] = {"test": test, "name": name, "teaches": teaches, "renames": renames}
    with lock.held(folder / versions.FOLDER):
        if said := promoting.settle(folder):
            print(said, file=sys.stderr)
        found = plan(folder, data, gate=as_gate(gate), overrides=overrides, **asked)
        work = _begin(found, abandon=abandon)
        _learn_and_judge(found, work, promote, quiet=quiet)
        return _publish(found, work)


def as_gate(given: Gate | Mapping[str, Any] | str | Path | None) -> Gate:
    """The rules that are meant."""
    if isinstance(given, Gate):
        return given
    if isinstance(given, Mapping):
        from perdure.settings import config

        return config.parse(Gate, given, where="gate")
    return gates.read(None if given is None else Path(given))


def fork(asked: Recipe, start: str | Path, *, quiet: bool = False) -> Result:
    """``perdure run RECIPE --from RUN``: a new folder whose run goes on from a version, through the recipe's own tasks.

    Raises:
        RecipeError: method or models are others than the version's, or several seeds are asked for.
    """
    parent = versions.resolve(start)
    before = recipe.load(parent.folder / "recipe.yaml")
    if len(asked.seeds) > 1:
        raise RecipeError("several seeds", where="run.seeds", expected="one: what a run goes on from has one")
    for section in ("method", "models"):
        differ = [d for d in recipe.differences(before, asked) if d[0].startswith(section)]
        if differ and not _tunable(differ):
            name, was, now = differ[0]
            raise RecipeError(f"was {was!r} in {parent}, now {now!r}", where=name, expected="its method and models")
    saved = versions.read_tasks(parent.folder) or appending.known(recipe.build_stream(before))
    known, _, gone = with_kept_tests(parent, before, saved, split=asked.evaluate.split)
    stream = appending.append(known, asked.stream.build())
    one = replace(asked.for_seed(next(iter(asked.seeds))), stream=chain(before.stream, asked.stream))
    require_fit(one, stream)
    folder = one.folder(one.run.seed)
    finished = api.finished_scores(folder)
    runtime = api.make_runtime(one, folder, quiet=quiet)
    if finished is not None:
        return Result([api.Finished(folder=folder, scores=finished, fresh=False, main=runtime.main)])
    with lock.held(folder):
        resuming.require_same_settings(one, folder)
        if not checkpoint_file(folder).is_file():
            leaving.same_file(parent.state, checkpoint_file(folder))
        if gone:
            runtime.say(f"earlier tasks are not tested: {gone}")
        built = Built(*_method(one, stream))
        scores = api.go_through(one, built, runtime, folder, leaves=True)
    return Result([api.Finished(folder=folder, scores=scores, fresh=True, main=runtime.main)])


def _tunable(differ: Sequence[tuple[str, Any, Any]]) -> bool:
    from perdure.updating.planned import TUNABLE

    keys = [name.rpartition(".")[2] for name, _, _ in differ]
    return all(any(key == t or key.endswith(f"_{t}") for t in TUNABLE) for key in keys)


def _method(asked: Recipe, stream: Any) -> tuple[Any, Any, dict[str, Any]]:
    method, models = recipe.build_method(asked, asked.run.seed)
    return method, stream, models


def _run_of(run: str | Path, promote: str) -> Path:
    """The folder of the run that is to be updated."""
    if promote not in ("auto", "never", "always"):
        raise RecipeError(f"is {promote!r}", where="promote", expected="auto, never or always")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError("several processes", where="perdure update", expected="one: a version is written by one")
    folder, wanted = versions.split(run)
    if wanted not in ("", "current"):
        raise RecipeError("an update's parent is the promoted version", where=str(run), todo="Promote it first.")
    if not (folder / "recipe.yaml").is_file():
        raise RecipeError("this is not a run's folder", where=str(folder), expected="recipe.yaml in it")
    return folder


# -- the work -----------------------------------------------------------------------------------------------


def _begin(found: Planned, *, abandon: bool) -> Path:
    """The folder of the work, begun with the parent's state or left by the same update before."""
    work = found.parent.run / versions.FOLDER / versions.UNDER_WAY
    if abandon and work.is_dir():
        shutil.rmtree(work)
    if (work / "update.json").is_file():
        _require_same(found, work)
        checkpoint.sweep(work)
        return work
    shutil.rmtree(work, ignore_errors=True)  # a kill may have come before anything was written
    leaving.same_file(found.parent.state, checkpoint_file(work))
    write_json(work / "update.json", _told(found))
    return work


def _told(found: Planned) -> dict[str, Any]:
    """By what an update is known again."""
    return {"parent": found.parent.number, "task": found.task.name, "stream": found.recipe.stream.plain()}


def _require_same(found: Planned, work: Path) -> None:
    before = read_json(work / "update.json")
    if before != _told(found):
        raise RecipeError(
            f"another update is under way, task '{before.get('task')}' of version {before.get('parent')}",
            where=str(work),
            expected="the same data and settings, to go on with it",
            todo="Go on with it, or add --abandon to drop it.",
        )


def _learn_and_judge(found: Planned, work: Path, promote: str, *, quiet: bool) -> None:
    """Everything that goes into the version's folder."""
    asked = found.recipe
    run = found.parent.run
    for index, examples in found.unkept:
        kept_tests.write(run, kept_tests.table(found.parent, index), examples)
    runtime = api.make_runtime(asked, work, quiet=quiet)
    runtime.say(f"a version takes about {in_words(found.parent.state.stat().st_size)}")
    before = judging.before(found, work, quiet=quiet)
    built = Built(*_method(asked, found.stream))
    api.go_through(asked, built, runtime, work)
    verdict = judging.verdict(found, built.method, work, before, runtime)
    passed = verdict["outcome"] == "passed"
    wanted = promote == "always" or (promote == "auto" and passed)
    verdict |= {"promote": promote, "decision": "promote" if wanted else "hold"}
    kept_tests.write(run, work / kept_tests.OWN, getattr(found.task, asked.evaluate.split))
    write_json(work / "manifest.json", _manifest(found))
    state = checkpoint_file(work)
    number = versions.numbers(run)[-1] + 1
    write_json(
        work / "version.json",
        {
            "version": number,
            "parent": found.parent.number,
            "time": versions.now_in_words(),
            "task": appending.known(found.stream)["tasks"][-1],
            "state": {"bytes": state.stat().st_size, "digest": promoting.file_digest(state)},
            "changed": found.changed,
            "gate": verdict,
        },
    )


def _publish(found: Planned, work: Path) -> Version:
    """The work becomes a version, whole or not at all; then the pointer moves, if the gate lets it."""
    run = found.parent.run
    about = versions.read_checked(run_files.VersionFile, work / "version.json")
    for path in sorted(work.rglob("*"), reverse=True):
        sync(path)
    sync(work)
    os.rename(work, versions.version_folder(run, about["version"]))
    sync(run / versions.FOLDER)
    if about["gate"]["decision"] == "promote" and versions.current(run) == found.parent.number:
        with lock.held(run / versions.FOLDER / promoting.POINTER):
            versions.point(run, about["version"], by="perdure update", reason=f"gate: {about['gate']['outcome']}")
    if found.recipe.run.keep != "all":
        promoting.prune_held(run, found.recipe.run.keep)
    return versions.resolve(f"{run}{versions.AT}{about['version']}")


def _manifest(found: Planned) -> dict[str, Any]:
    """What the task's data were: id and digest of each example."""
    parts = {split: getattr(found.task, split) for split in ("train", "validation", "test")}
    return {split: [[e.id, contents.digest(e)] for e in part] for split, part in parts.items()}
