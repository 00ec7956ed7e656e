"""What an update will do, known before any work: the parent, the task, the stream, and all that stands against it.

Knows recipes, streams and kept tests. Loads no model and writes nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perdure import checkpoint, kept_examples, recipe, resuming
from perdure import gate as gates
from perdure.data.fitting import fitting
from perdure.errors import CheckpointError, DataError, RecipeError
from perdure.files.sizes import in_words
from perdure.files.text_files import read_json
from perdure.gate import Gate
from perdure.loop import saved_state
from perdure.recipe import Recipe
from perdure.recipe.source import read_overrides
from perdure.run_folder import run_files, versions
from perdure.run_folder.versions import Version
from perdure.settings import config, registry
from perdure.settings.config import Named
from perdure.streams import appending, contents
from perdure.types import Examples, Stream, Task
from perdure.updating import kept_tests

TUNABLE = ("epochs", "batch_size", "lr", "accumulate")
"""Settings of a method that may change from version to version, also with a word in front (`visual_epochs`)."""
OWN = ("task", "data")
"""Sections of an update alone: settings of its task (`one_task`) and of the reader of its data."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """An update before it is begun."""

    parent: Version
    recipe: Recipe
    """Of the new version: that of its parent, and the new task behind its stream."""
    stream: Stream
    """All tasks; earlier ones have their kept tests alone."""
    changed: dict[str, list[Any]]
    """Settings that differ from the parent's: dotted name -> before and now."""
    gate: Gate
    unkept: tuple[tuple[int, Examples], ...]
    """Tests of earlier tasks that are not kept yet, by task."""
    without_tests: str
    """Why tests of earlier tasks are neither kept nor there; empty if they are."""

    @property
    def task(self) -> Task:
        """The new one."""
        return self.stream.tasks[-1]

    @property
    def known(self) -> Stream:
        """What the parent has learned."""
        return replace(self.stream, tasks=self.stream.tasks[:-1])

    def told(self) -> dict[str, Any]:
        """What `--dry-run` shows, JSON-ready."""
        task, known = self.task, appending.classes_of(self.known)
        again = [known[label] for label in task.labels if label < task.offset] if task.kind == "classify" else []
        split = self.recipe.evaluate.split
        counts = {t.name: len(getattr(t, split)) for t in self.known}
        return {
            "run": str(self.parent.run),
            "parent": self.parent.number,
            "task": {"index": task.index, "name": task.name, "kind": task.kind},
            "new_classes": list(task.candidates) if task.offset or not known else [],
            "known_classes": again if task.offset else list(task.candidates),
            "examples": {part: len(getattr(task, part)) for part in ("train", "validation", "test")},
            "changed": self.changed,
            "bytes_of_a_version": self.parent.state.stat().st_size,
            "kept_tests": counts,
            "without_tests": self.without_tests,
            "power": gates.power(self.gate, counts),
        }


def plan(
    run: str | Path,
    data: str | Path | Mapping[str, Any],
    *,
    test: str | Path | Mapping[str, Any] | None = None,
    name: str = "",
    teaches: str = "",
    renames: Mapping[str, str] | None = None,
    gate: Gate | None = None,
    overrides: Sequence[str] = (),
) -> Planned:
    """What `perdure.updating.update` will do. Raises RecipeError, DataError or CheckpointError for all that stands
    against it."""
    parent = versions.resolve(run)
    before = _finished(parent)
    given, own = _parted(overrides)
    asked = recipe.load(before, given)
    changed = _tuned(before, asked)
    saved = _saved_tasks(parent, before)
    if teaches not in ("", "classes", "domain"):
        raise RecipeError(f"is {teaches!r}", where="--as", expected="classes or domain")
    settings: dict[str, Any] = {"data": _data(data, own["data"]), "called": name, "renames": dict(renames or {})}
    settings |= {"teaches": teaches or ("domain" if _by_domains(saved) else "classes"), **own["task"]}
    if test is not None:
        settings["test"] = _data(test, {})
    part = Named(place="streams", name="one_task", settings={k: v for k, v in settings.items() if v not in ("", {})})
    asked = replace(asked, stream=chain(before.stream, part), evaluate=_evaluated(asked))
    known, unkept, gone = with_kept_tests(parent, before, saved, split=asked.evaluate.split)
    stream = appending.append(known, part.build())
    _require_no_leak(parent, stream, unkept)
    require_fit(asked, stream)
    _require_memory(parent)
    _require_disk(parent)
    return Planned(
        parent=parent,
        recipe=asked,
        stream=stream,
        changed=changed,
        gate=gate or Gate(),
        unkept=unkept,
        without_tests=gone,
    )


def chain(first: Named, then: Named) -> Named:
    """One stream after another."""
    whole = first.name == "chained" and not first.settings.get("tasks")
    parts = first.settings["parts"] if whole else [first.plain()]
    return Named(place="streams", name="chained", settings={"parts": [*parts, then.plain()]})


def require_fit(asked: Recipe, stream: Stream) -> None:
    """RecipeError if the method cannot go on with these tasks."""
    about = registry.describe("methods", asked.method.name)
    where = f"method {asked.method.name}"
    if about.not_updatable:
        raise RecipeError(f"cannot be updated: {about.not_updatable}", where=where)
    room = asked.method.settings.get("tasks", getattr(_settings(asked.method), "tasks", None))
    if isinstance(room, int) and len(stream) > room:
        raise RecipeError(
            f"has room for {room} tasks, and this is task {len(stream)}",
            where=where,
            expected="a run whose method.tasks is large enough from the start",
        )
    classes = len(appending.classes_of(stream))
    for role, named in asked.models.items():
        outputs = getattr(_settings(named), "classes", None)
        if isinstance(outputs, int) and outputs < classes and not recipe.head_grows(asked, role):
            raise RecipeError(
                f"a head of {outputs} outputs, which was fixed when the run was made, and {classes} classes",
                where=f"models.{role}.classes",
                expected=f"at most {outputs} classes",
                todo=f"Make a run with models.{role}.classes={classes} or more, or update with known classes only.",
            )
    recipe.check_fit(asked, stream)


def with_kept_tests(
    parent: Version, before: Recipe, saved: Mapping[str, Any], *, split: str
) -> tuple[Stream, tuple[tuple[int, Examples], ...], str]:
    """The stream so far with the tests that are kept of each task, or that are there still; what is not kept yet, by
    task; and why some are missing."""
    stream = appending.from_known(before.stream.name, saved)
    kept = {task.index: kept_tests.read(parent, task.index) for task in stream}
    there, gone = {}, ""
    if any(part is None for part in kept.values()):
        try:
            built = recipe.build_stream(before)
            if appending.known(built)["tasks"] != list(saved["tasks"]):
                raise DataError(
                    "other classes or tasks than when the run was made", where=f"stream {before.stream.name}"
                )
            there = {task.index: getattr(task, split) for task in built}
        except (DataError, RecipeError) as fault:  # what is left of a folder may also be no stream of the recipe's
            gone = str(fault)
    unkept = tuple((index, there[index]) for index, part in kept.items() if part is None and index in there)
    found = kept | {index: kept_tests.chosen(part, kept_tests.LIMIT) for index, part in unkept}
    tasks = tuple(replace(task, **{split: found[task.index] or Examples.of([])}) for task in stream)
    return replace(stream, tasks=tasks, manifest=_manifest(parent.folder)), unkept, gone


def _finished(parent: Version) -> Recipe:
    file = parent.folder / "recipe.yaml"
    if not file.is_file():
        raise RecipeError("this is not a run's folder", where=str(parent.folder), expected="recipe.yaml in it")
    if resuming.finished_scores(parent.folder) is None or not parent.state.is_file():
        raise CheckpointError(
            "the run is not finished", where=str(parent.run), todo=f"Finish it: perdure run {parent.run}"
        )
    return recipe.load(file)


def _parted(overrides: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Overrides of the recipe, and those of an update's own sections."""
    mine = [text for text in overrides if text.partition(".")[0] in OWN]
    layer, wrong = read_overrides(mine)
    if wrong:
        raise RecipeError("; ".join(fault.what for fault in wrong), where="update")
    if streamed := [text for text in overrides if text.startswith("stream.")]:
        what = "the stream of a version is that of its parent and the new task"
        raise RecipeError(what, where=streamed[0], todo="Settings of the new task begin with task. or data.")
    rest = [text for text in overrides if text not in mine]
    return rest, {section: dict(layer.values.get(section) or {}) for section in OWN}


def _tuned(before: Recipe, asked: Recipe) -> dict[str, list[Any]]:
    """Settings that changed; RecipeError for those by which the method would be another."""
    changed = {name: [was, now] for name, was, now in recipe.differences(before, asked)}
    for name, (was, now) in changed.items():
        section, _, rest = name.partition(".")
        key = rest.rpartition(".")[2]
        may = section == "method" and any(key == t or key.endswith(f"_{t}") for t in TUNABLE)
        if not may and name not in ("run.matmul", "run.precision", "evaluate.metrics"):
            listed = ", ".join(f"method.{key}" for key in TUNABLE)
            raise RecipeError(
                f"was {was!r}, now {now!r}: what has been learned hangs on it",
                where=name,
                expected=f"other values of {listed}, run.* and task.* alone",
            )
    return changed


def data_set(given: str | Path | Mapping[str, Any]) -> Named:
    """A data set as a recipe names it; a path by what it looks like from outside."""
    if isinstance(given, Mapping):
        return Named.of("data", dict(given))
    if isinstance(given, str) and given.lstrip().startswith("{"):
        layer, wrong = read_overrides([f"data.data={given}"])
        if wrong:
            raise RecipeError(wrong[0].what, where="--data")
        return Named.of("data", layer.values["data"]["data"])
    return _fitting(given)


def _data(given: str | Path | Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What an update learns from, as YAML has it."""
    named = data_set(given)
    if "test_share" in config.field_types(registry.settings("data", named.name)):
        named = replace(named, settings={"test_share": 0, **named.settings})  # the task splits, by what examples hold
    return replace(named, settings={**named.settings, **settings}).plain()


def _fitting(given: str | Path) -> Named:
    path = Path(given).expanduser()
    if path.suffix.lower() != ".json" or not path.is_file():
        return fitting(given)
    content = read_json(path)
    spoken = isinstance(content, list) and content and isinstance(content[0], Mapping) and "conversations" in content[0]
    if spoken:
        return Named(place="data", name="instruction", settings={"train": str(path), "images": str(path.parent)})
    return Named(place="data", name="captioned_images", settings={"train": str(path), "root": str(path.parent)})


def _by_domains(saved: Mapping[str, Any]) -> bool:
    """Whether the tasks so far were the same classes again and again."""
    tasks = [task for task in saved["tasks"] if task["kind"] == "classify"]
    return len(tasks) > 1 and all(task["candidates"] == tasks[0]["candidates"] for task in tasks)


def _evaluated(asked: Recipe) -> Any:
    """Every earlier task is tested, and answers are written down: the gate reads them."""
    return replace(asked.evaluate, plan="seen", save_predictions=True, start=False)


def _saved_tasks(parent: Version, before: Recipe) -> dict[str, Any]:
    """`tasks.json`; of a run that was made before runs wrote it, from its data, or from its card and state."""
    if saved := versions.read_tasks(parent.folder):
        return saved
    try:
        return appending.known(recipe.build_stream(before))
    except (DataError, RecipeError) as gone:
        if found := _from_manifest(parent):
            return found
        raise DataError(
            f"the run was made before runs wrote down their tasks, and its data are not here: {gone}",
            where=str(parent.run),
            todo="Update it once where the data are.",
        ) from None


def _from_manifest(parent: Version) -> dict[str, Any]:
    """Tasks of a class-incremental run, by the cuts in its manifest and the classes that its last test asked for."""
    manifest, saved = _manifest(parent.folder), saved_state(parent.folder)
    if saved is None or manifest.get("stream") != "class_incremental" or manifest.get("task_revealed"):
        return {}
    cuts, names = manifest["cuts"], saved["query"]["candidates"]
    if len(names) != cuts[-1]:
        return {}
    metrics = list(saved["rows"][-1]["values"]) if saved["rows"] else ["accuracy"]
    tasks = [
        {"index": i, "name": name, "kind": "classify", "candidates": names[first:end], "offset": first}
        for i, (name, first, end) in enumerate(zip(saved["names"], cuts, cuts[1:]))
    ]
    how = {"shared_candidates": True, "task_revealed": False, "scope": manifest.get("scope", "seen")}
    return {"tasks": [task | {"metrics": metrics} for task in tasks], **how}


def _manifest(folder: Path) -> dict[str, Any]:
    file = folder / "data.json"
    return read_json(file) if run_files.is_there(file) else run_files.read_card(folder).get("stream", {})


def _require_no_leak(parent: Version, stream: Stream, unkept: Sequence[tuple[int, Examples]]) -> None:
    """DataError if something that would be learned is a test of an earlier task."""
    tests: dict[str, str] = {}
    for task in stream.tasks[:-1]:
        kept = kept_tests.digests(parent, task.index)
        tests |= {found: f"{name} of task '{task.name}'" for found, name in kept.items()}
    for index, examples in unkept:
        some = kept_tests.chosen(examples, kept_tests.LIMIT)
        tests |= {contents.digest(e): f"{e.id} of task '{stream.tasks[index].name}'" for e in some}
    if not tests:
        return
    new = stream.tasks[-1]
    leaked = [(e, tests[found]) for e in [*new.train, *new.validation] if (found := contents.digest(e)) in tests]
    if leaked:
        more = f" ({len(leaked)} such examples)" if len(leaked) > 1 else ""
        raise DataError(
            f"{leaked[0][0].id} is the test example {leaked[0][1]}{more}",
            where=f"task '{new.name}'",
            expected="training examples by which no version is judged",
            todo="Take them out of the data.",
        )


def _require_memory(parent: Version) -> None:
    """DataError if the method keeps examples of earlier tasks by their paths, and they are not there any more."""
    missing = sorted({path for path in kept_examples.files(checkpoint.values(parent.state)) if not path.is_file()})
    if missing:
        more = f" ({len(missing)} such files)" if len(missing) > 1 else ""
        raise DataError(
            f"{missing[0]} is not there any more{more}",
            where=f"what {parent} keeps of earlier tasks",
            expected="the files that the method learns from again",
            todo="Put them back; or take a method that keeps images themselves, or none.",
        )


def _require_disk(parent: Version) -> None:
    needed, free = int(2.2 * parent.state.stat().st_size), shutil.disk_usage(parent.run).free
    if needed > free:
        raise RecipeError(
            f"a version needs {in_words(needed)}, {in_words(free)} are free",
            where=str(parent.run),
            todo=f"Free some space: perdure versions {parent.run} --prune 2",
        )


def _settings(named: Named) -> Any:
    place: Any = named.place
    return config.parse(registry.settings(place, named.name), named.settings, where=named.name)
