"""The straight line: go through a stream, learn each task, test what the plan asks for, save, go on.

Knows Protocols only: no method, model, data set or stream by name.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from perdure import checkpoint, demands, retention
from perdure.calibration import calibrate
from perdure.errors import CheckpointError, Interrupted
from perdure.evaluate import Evaluation, evaluate, predicting
from perdure.evaluate import asked as places
from perdure.files.written_whole import write_json
from perdure.keys import key_seed
from perdure.metrics import continual
from perdure.run_folder import run_files
from perdure.run_folder.run_files import checkpoint_file
from perdure.runtime import Runtime
from perdure.runtime.devices import seed_torch
from perdure.runtime.placing import place
from perdure.runtime.progress import Outlook, clock
from perdure.types import Method, Query, Stream, Task

Plan = Callable[[Stream, int], Sequence[Task]]
PLANS: dict[str, Plan] = {
    "seen": lambda stream, t: stream.tasks[: t + 1],
    "current": lambda stream, t: stream.tasks[t : t + 1] if t >= 0 else (),
    "all": lambda stream, t: stream.tasks,
    "seen+next": lambda stream, t: stream.tasks[: t + 2],
    "last": lambda stream, t: stream.tasks if t == len(stream) - 1 else (),
}
"""Which tasks are tested after task t (t = -1: before the first)."""


@dataclass
class Scores:
    """Every number that was measured: one row for each (after, asked)."""

    tasks: list[str]
    headline: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    retention: list[dict[str, Any]] = field(default_factory=list)
    """One row for each (after, set) of `Stream.retention`."""

    def add(self, *, after: int, asked: int, n: int, values: Mapping[str, Any]) -> None:
        self.rows.append({"after": after, "asked": asked, "n": n, "values": dict(values)})

    def matrix(self, metric: str | None = None) -> tuple[list[list[float | None]], list[list[int]]]:
        """Values and example counts ``[after][asked]`` for after = 0..T-1; None and 0 where not measured."""
        values, counts = continual.cells(self.rows, len(self.tasks), metric or self.headline)
        return values[:-1], counts[:-1]

    def to_json(self) -> dict[str, Any]:
        found = {"tasks": self.tasks, "headline": self.headline, "rows": self.rows}
        return found | ({"retention": self.retention} if self.retention else {})


Left = Callable[[Task, Scores], None]


def run(
    method: Method,
    stream: Stream,
    *,
    evaluation: Evaluation | None = None,
    runtime: Runtime,
    left: Left | None = None,
) -> Scores:
    """Go through `stream` with `method`; resume from `runtime.out` if a run is under way there.

    Args:
        left: called in the main process with each task but the last, when its state is saved; again after a stop.

    Returns the scores; also in ``scores.json`` after every task.

    Raises:
        RecipeError: the method cannot go through the stream (`demands`).
        CheckpointError: the checkpoint belongs to another method or stream.
    """
    evaluation = evaluation or Evaluation()
    _check(method, stream, evaluation)
    plan = PLANS[evaluation.plan]
    scores = Scores([task.name for task in stream], stream.tasks[0].metrics[0])
    done = _resume(method, scores, runtime)
    place(method, runtime)
    outlook = _outlook(stream, plan, evaluation, runtime)
    if done is None:
        done = -1
        if evaluation.start or stream.retention:
            runtime.task, runtime.place = -1, _place(runtime, "before the first task")
            _test(method, stream, _asked_at_start(stream, plan, evaluation), -1, scores, evaluation, runtime)
    _leave(left, stream, done, scores, runtime)
    for task in stream.tasks[done + 1 :]:
        runtime.task, runtime.place = task.index, _place(runtime, f"task {task.index + 1} of {len(stream)}")
        seed_torch(runtime.key("learn"))
        began = time.perf_counter()
        method.learn(task, runtime)
        learned = time.perf_counter()
        _test(method, stream, plan(stream, task.index), task.index, scores, evaluation, runtime)
        tested = time.perf_counter()
        runtime.log("task", name=task.name, learn_seconds=learned - began, test_seconds=tested - learned)
        _save(method, stream, scores, task, runtime)
        _leave(left, stream, task.index, scores, runtime)
        outlook.note(task.index, learned - began, tested - learned)
        runtime.say(runtime.within(_came_to(scores, task.index, tested - began, outlook)))
        if runtime.agreed(runtime.stop_requested) and task.index < len(stream) - 1:
            raise Interrupted(f"stopped after {runtime.place}")
    calibrate(method, stream, evaluation, runtime=runtime)
    runtime.finish()
    return scores


def _leave(left: Left | None, stream: Stream, done: int, scores: Scores, runtime: Runtime) -> None:
    """Task `done` leaves what it leaves; the last one is the run itself."""
    if left is not None and 0 <= done < len(stream) - 1 and runtime.main and runtime.out is not None:
        left(stream.tasks[done], scores)


def _asked_at_start(stream: Stream, plan: Plan, evaluation: Evaluation) -> Sequence[Task]:
    return (plan(stream, -1) or stream.tasks[:1]) if evaluation.start else ()


def _place(runtime: Runtime, where: str) -> str:
    return ", ".join(filter(None, (runtime.of_runs, where)))


def _outlook(stream: Stream, plan: Plan, evaluation: Evaluation, runtime: Runtime) -> Outlook:
    """What is known of the run's time, by what its log says of tasks that are done."""
    tested = [sum(len(getattr(task, evaluation.split)) for task in plan(stream, t)) for t in range(len(stream))]
    outlook = Outlook([len(task.train) for task in stream], tested)
    outlook.runs = runtime.runs_after
    for event in run_files.read_lines(runtime.out / "events.jsonl")[0] if runtime.out is not None else ():
        learn, test = event.get("learn_seconds"), event.get("test_seconds")
        of_task = event["event"] == "task" and 0 <= event["task"] < len(stream)
        if of_task and isinstance(learn, float) and isinstance(test, float):
            outlook.note(event["task"], learn, test)
    runtime.outlook = outlook
    return outlook


def _came_to(scores: Scores, after: int, seconds: float, outlook: Outlook) -> str:
    """A finished task in a line: its headline on all tasks tested, on itself, and times."""
    rows = [row for row in scores.rows if row["after"] == after and row["asked"] <= after]
    pairs = [(row["values"].get(scores.headline), row["n"], row["asked"]) for row in rows]
    numbers = [(v, n, asked) for v, n, asked in pairs if isinstance(v, int | float)]
    own = [f"{v:.2f} on its own" for v, _, asked in numbers if asked == after]
    parts = [scores.headline.replace("_", " ")] if numbers else []
    if len(numbers) > 1:
        mean = sum(v * n for v, n, _ in numbers) / max(sum(n for _, n, _ in numbers), 1)
        own = [f"{mean:.2f} on {len(numbers)} tasks", *own]
    left = outlook.left()
    rest = [] if not left else [f"{clock(left)} left"]
    return ", ".join([" ".join([*parts, ", ".join(own)]).strip() or "done", clock(seconds), *rest])


def seed_everything(seed: int) -> None:
    """Seed torch for the building of models and methods, before `run` keys all else."""
    seed_torch(key_seed(seed, "build"))


def saved_state(out: Path) -> dict[str, Any] | None:
    """What a run's folder keeps of its last finished task; None if there is none.

    Raises:
        CheckpointError: the file is damaged, or is not that of a finished task.
    """
    file = checkpoint_file(out)
    if not run_files.is_there(file):
        return None
    return run_files.check(run_files.ResumePoint, checkpoint.load(file), where=file, error=CheckpointError)


def load_into(method: Method, saved: Mapping[str, Any], out: Path) -> None:
    """The method as it was after its last finished task.

    Raises:
        CheckpointError: the state is that of another method.
    """
    with run_files.fitting(checkpoint_file(out), what=type(method).__name__):
        method.load_state_dict(saved["method"])


def _test(
    method: Method,
    stream: Stream,
    asked: Sequence[Task],
    after: int,
    scores: Scores,
    evaluation: Evaluation,
    runtime: Runtime,
) -> None:
    predictors: dict[Query, Any] = {}
    for task in asked:
        if not places(method, task, evaluation):  # of an update, whose earlier tasks kept no tests; of a shard
            continue
        query = stream.query(task, after=after)
        if query not in predictors or getattr(method, "carries_state", False):  # each test set begins anew
            with predicting(method, runtime):
                predictors[query] = method.predictor(query)
        began, processor = time.perf_counter(), time.process_time()
        values, n = evaluate(method, predictors[query], task, query, evaluation, runtime=runtime, after=after)
        cost = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - processor}
        cost["peak_bytes"] = max(runtime.peak_memory().values())
        scores.add(after=after, asked=task.index, n=n, values=values)
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        runtime.log("test", after=after, asked=task.index, n=n, **cost, **numbers)
    _ask_what_is_kept(method, stream, after, scores, evaluation, runtime)


def _ask_what_is_kept(
    method: Method, stream: Stream, after: int, scores: Scores, evaluation: Evaluation, runtime: Runtime
) -> None:
    """Accuracy on each set of `Stream.retention`; no records are kept."""
    for asked in stream.retention:
        query = retention.query(asked)
        with predicting(method, runtime):
            predict = method.predictor(query)
        settings = replace(evaluation, save_predictions=False, metrics=(), shard="")
        values, n = evaluate(method, predict, asked, query, settings, runtime=runtime, after=after)
        scores.retention.append({"after": after, "set": asked.name, "n": n, "accuracy": values["accuracy"]})
        runtime.log("retention", after=after, set=asked.name, n=n, accuracy=values["accuracy"])


def _check(method: Method, stream: Stream, evaluation: Evaluation) -> None:
    demands.check(
        stream,
        method=type(method).__name__,
        answers=method.answers,
        needs_task_name=getattr(method, "needs_task_name", ()),
        new_labels_only=getattr(method, "new_labels_only", ""),
        split=evaluation.split,
    )
    require = getattr(method, "require_names", None)
    if require is None:
        return
    named = [task.candidates for task in stream if task.kind == "classify"]
    apart = stream.task_revealed or not stream.shared_candidates
    asked = named if apart else [[name for names in named for name in names]]
    for names in (*asked, *(task.candidates for task in stream.retention)):
        require(names)  # before a task is learned that a later one's names would spoil


def _save(method: Method, stream: Stream, scores: Scores, task: Task, runtime: Runtime) -> None:
    """The resume point, then what people read; the mid-task checkpoints of the task are done with."""
    own = method.state_dict() if runtime.out is not None else {}  # every process: weights may be sharded
    if runtime.out is not None and runtime.main:
        state = {
            "task": task.index,
            "names": scores.tasks,
            "rows": scores.rows,
            "retention": scores.retention,
            "method": own,
        }
        query = asdict(stream.query(task, after=task.index))
        more = {"query": query | {"candidates": list(query["candidates"])}, "skipped": runtime.skipped}
        checkpoint.save(checkpoint_file(runtime.out), state | more)
        write_json(runtime.out / "scores.json", scores.to_json())
        for stale in (runtime.out / "checkpoint").glob("task_*"):
            shutil.rmtree(stale)
    runtime.flush()
    runtime.wait()


def _resume(method: Method, scores: Scores, runtime: Runtime) -> int | None:
    """Load the resume point; the index of the last finished task, or None for a fresh start."""
    saved = saved_state(runtime.out) if runtime.out is not None else None
    if saved is None or runtime.out is None:
        return None
    learned = saved["names"][: saved["task"] + 1]
    if learned != scores.tasks[: len(learned)]:
        raise CheckpointError(
            f"the checkpoint is of a stream whose first tasks are {learned}",
            where=str(checkpoint_file(runtime.out)),
            expected=f"the beginning of {scores.tasks}",
        )
    load_into(method, saved, runtime.out)
    scores.rows[:], scores.retention[:] = saved["rows"], saved["retention"]
    runtime.skipped.update(saved["skipped"])
    if runtime.main:  # a kill may have come between the checkpoint and the scores
        write_json(runtime.out / "scores.json", scores.to_json())
    if saved["task"] < len(scores.tasks) - 1:
        runtime.say(f"resuming after task {saved['task'] + 1} of {len(scores.tasks)}")
    return saved["task"]
