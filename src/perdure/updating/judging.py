"""What the promoted version and the candidate answer to the same examples, and what the gate makes of it.

Knows methods, queries and records on disk. Does not know the rules (`perdure.gate`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from perdure import api, gate, recipe, retention
from perdure.errors import RecipeError
from perdure.evaluate import evaluate, predicting, read_records
from perdure.gate import Asked
from perdure.loading import ExampleBatches
from perdure.loop import load_into, saved_state
from perdure.run_folder import versions
from perdure.run_folder.run_files import checkpoint_file
from perdure.run_folder.versions import Version
from perdure.runtime import Runtime
from perdure.runtime.placing import place
from perdure.settings import registry
from perdure.streams import appending
from perdure.types import Examples, Query, Stream, Task
from perdure.updating import kept_tests
from perdure.updating.planned import Planned

TIMED, WARM = 50, 5
"""Examples whose answers are timed, and how many of them warm up."""
PROBE = -1
"""Index of the probe, which is no task."""
Records = dict[int, list[dict[str, Any]] | None]


def before(found: Planned, work: Path, *, quiet: bool) -> Records:
    """Records of the promoted version by task: earlier ones, the new one (None: it cannot be asked), the probe.

    What it answered when it was made is not asked again; what is asked is written to ``before/predictions``.
    """
    known, split, new = found.known, found.recipe.evaluate.split, found.task
    last = known.tasks[-1].index
    records: Records = {}
    todo: list[tuple[Task, Query]] = []
    for task in known:
        wanted = {example.id for example in getattr(task, split)}
        records[task.index] = _recorded(found.parent.folder / "predictions", last, task.index, wanted)
        if wanted and records[task.index] is None:
            todo.append((task, known.query(task, after=last)))
    records[new.index] = None
    if not known.task_revealed:
        todo.append((new, _promoted_query(known, new)))
    if (probe := probe_of(found)) is not None:
        todo.append((probe, retention.query(probe)))
    folder = work / "before"
    left = []
    for task, query in todo:
        wanted = {example.id for example in getattr(task, split)}
        records[task.index] = _recorded(folder / "predictions", last, task.index, wanted)
        left += [(task, query)] * (records[task.index] is None and bool(wanted))
    if left:
        runtime = api.make_runtime(found.recipe, folder, quiet=quiet)
        method = _promoted(found, runtime)
        for task, query in left:
            records[task.index] = _ask(method, task, query, found, runtime, after=last)
    return records


def verdict(found: Planned, method: Any, work: Path, before: Records, runtime: Runtime) -> dict[str, Any]:
    """What the gate says of the candidate, whose method this is."""
    split, after = found.recipe.evaluate.split, found.task.index
    classes = appending.classes_of(found.stream)
    asked = []
    for task in found.stream:
        wanted = {example.id for example in getattr(task, split)}
        now = _recorded(work / "predictions", after, task.index, wanted) if wanted else []
        names = classes if task.kind == "classify" and found.stream.shared_candidates else task.candidates
        was = before[task.index]
        asked.append(Asked(name=task.name, metric=task.metrics[0], before=was, after=now or [], classes=names))
    probe = probe_of(found)
    last = None
    if probe is not None:
        now = _ask(method, probe, retention.query(probe), found, runtime, after=after)
        names = [*[""] * probe.offset, *probe.candidates]
        last = Asked(name=probe.name, metric=probe.metrics[0], before=before[PROBE], after=now, classes=names)
    cost: dict[str, list[float]] = {
        "bytes": [file.stat().st_size for file in (found.parent.state, checkpoint_file(work))]
    }
    if found.gate.seconds is not None:
        cost["seconds"] = _seconds(found, method, runtime)
    said = gate.judge(found.gate, earlier=asked[:-1], new=asked[-1], probe=last, cost=cost)
    return said | ({"probe": {"name": last.name, "metric": last.metric, "classes": list(last.classes)}} if last else {})


def again(version: Version, rules: gate.Gate) -> dict[str, Any]:
    """What other rules say of a version that an update made, by the records that it and its parent left.

    Raises:
        RecipeError: no update made it, its records were pruned, or the rules have a probe and none was asked.
    """
    about = version.about
    if not about or about.get("of_run"):
        raise RecipeError("no update made this version", where=str(version), expected="a version that a gate judged")
    parent = versions.resolve(f"{version.run}{versions.AT}{about['parent']}")
    stream = appending.from_known("run", versions.read_tasks(version.folder))
    after = stream.tasks[-1].index
    told = about["gate"].get("probe")
    if rules.probe is not None and told is None:
        raise RecipeError("no probe was asked of this version", where="gate.probe", expected="rules without one")

    def records(asked: int) -> tuple[list[dict[str, Any]] | None, list[dict[str, Any]]]:
        now = _all(version.folder / "predictions" / f"{after}_{asked}.jsonl")
        wanted = {record["id"] for record in now}
        places = (version.folder / "before", parent.folder)
        found = (_recorded(place / "predictions", after - 1, asked, wanted) for place in places)
        return next((some for some in found if some), None), now

    classes = appending.classes_of(stream)
    asked = []
    for task in stream:
        before, now = records(task.index)
        names = classes if task.kind == "classify" and stream.shared_candidates else task.candidates
        asked.append(Asked(name=task.name, metric=task.metrics[0], before=before, after=now, classes=names))
    if not asked[-1].after:
        raise RecipeError("its records were pruned", where=str(version), expected="a version that has its predictions")
    probe = None
    if told is not None:
        before, now = records(PROBE)
        probe = Asked(name=told["name"], metric=told["metric"], before=before, after=now, classes=told["classes"])
    return gate.judge(rules, earlier=asked[:-1], new=asked[-1], probe=probe, cost=about["gate"].get("cost"))


def _promoted(found: Planned, runtime: Runtime) -> Any:
    """The method of the promoted version."""
    parent = recipe.load(found.parent.folder / "recipe.yaml")
    method, _ = recipe.build_method(parent, parent.run.seed)
    saved = saved_state(found.parent.folder)
    assert saved is not None
    load_into(method, saved, found.parent.folder)
    place(method, runtime)
    return method


def _seconds(found: Planned, candidate: Any, runtime: Runtime) -> list[float]:
    """Median seconds of an answer, of the promoted version and the candidate: the same examples, asked in turns."""
    known, split = found.known, found.recipe.evaluate.split
    task = next((task for task in reversed(known.tasks) if len(getattr(task, split))), found.task)
    some = getattr(task, split)[:TIMED]
    query = known.query(known.tasks[-1], after=known.tasks[-1].index)
    methods = (_promoted(found, runtime), candidate)
    predictors = []
    for method in methods:
        with predicting(method, runtime):
            predictors.append(method.predictor(query))
    spent: list[list[float]] = [[], []]
    for pair in zip(*(_one_by_one(method, some, runtime) for method in methods), strict=True):
        for i, (method, predict) in enumerate(zip(methods, predictors)):
            began = time.perf_counter()
            with predicting(method, runtime):
                predict(pair[i])
            spent[i].append(time.perf_counter() - began)
    return [statistics.median(seconds[WARM:] or seconds) for seconds in spent]


def _one_by_one(method: Any, examples: Examples, runtime: Runtime) -> Iterator[Any]:
    batches = ExampleBatches(
        examples,
        method.preprocess,
        batch_size=1,
        runtime=runtime,
        stage="timed",
        training=False,
        collate=getattr(method, "collate", None),
    )
    return (batch for batch, _ in batches.epoch(0) if batch is not None)


def probe_of(found: Planned) -> Task | None:
    """The probe as a task of its own, whose labels come after all that are known: no row of a class is taken for one
    of its classes.

    Raises:
        RecipeError: the method answers for no class that it has not learned.
    """
    if found.gate.probe is None:
        return None
    dataset = found.gate.probe.build()
    if dataset.kind == "classify":
        about = registry.describe("methods", found.recipe.method.name)
        retention.require(about, found.recipe.models.keys(), where="gate.probe")
    test = kept_tests.chosen(dataset.test if len(dataset.test) else dataset.train, kept_tests.LIMIT)
    offset = len(appending.classes_of(found.stream)) if dataset.kind == "classify" else 0
    metrics = next((task.metrics for task in found.stream if task.kind == dataset.kind), ("accuracy",))
    named = f"probe {dataset.called}"
    split = found.recipe.evaluate.split
    return replace(
        retention.as_task(dataset, test, name=named, index=PROBE, offset=offset, split=split), metrics=metrics
    )


def _promoted_query(known: Stream, new: Task) -> Query:
    """What the promoted version is asked of the new task's examples: what it is asked in use."""
    last = known.tasks[-1].index
    if new.kind == "classify" and known.shared_candidates:
        return known.query(replace(new, index=last), after=last)
    return Query(kind=new.kind, candidates=new.candidates, offset=new.offset)


def _all(file: Path) -> list[dict[str, Any]]:
    return read_records(file) if file.is_file() else []


def _recorded(folder: Path, after: int, asked: int, wanted: set[str]) -> list[dict[str, Any]] | None:
    """The records of these examples, if all are there."""
    file = folder / f"{after}_{asked}.jsonl"
    if not file.is_file():
        return None
    found = [record for record in read_records(file) if record["id"] in wanted]
    return found if {record["id"] for record in found} == wanted else None


def _ask(
    method: Any, task: Task, query: Query, found: Planned, runtime: Runtime, *, after: int
) -> list[dict[str, Any]]:
    """A version's records of a task; on disk too, in `runtime.out`."""
    runtime.task = task.index
    settings = found.recipe.evaluate
    with predicting(method, runtime):
        predict = method.predictor(query)
    evaluate(method, predict, task, query, settings, runtime=runtime, after=after)
    wanted = {example.id for example in getattr(task, settings.split)}
    assert runtime.out is not None
    return _recorded(runtime.out / "predictions", after, task.index, wanted) or []
