"""Whether an answer hangs on anything but the example and the question: experiments on what a run has learned.

Knows how tests are asked, and ways to ask the same again: one by one, in another order, among others, without names.
Does not know what was learned, nor methods by name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from perdure.auditing.finding import FAULTS, Finding, Subject
from perdure.errors import PerdureError
from perdure.evaluate import evaluate, predicting, read_records
from perdure.testing.running import close
from perdure.types import Batch, Example, Examples, Query, Task

Record = dict[str, Any]
TOLERANCES = {"float32": 1e-4, "bf16": 0.05, "fp16": 0.02}
"""Within which numbers of a record count as rounding, by the run's precision."""
ADAPTING = 1e-3
"""Of a method that takes gradient steps at test time: Adam takes the sign of a gradient near 0 from rounding."""
WORDS = 0.02
"""Share of answers in words that rounding may change."""


@dataclass(frozen=True)
class Group:
    """Tests to which the same question is put."""

    query: Query
    examples: list[Example] = field(default_factory=list)
    tasks: dict[str, int] = field(default_factory=dict)
    """Index of the task of each, by its id."""


def batches_of_one(it: Subject) -> Finding:
    """Each example alone, against batches."""
    return _compared(
        it,
        "an answer does not hang on the size of its batch",
        "asked in batches of {n} and one by one",
        lambda group, batch: ask(it, group.query, group.examples, batch=batch),
        lambda group, batch: alone(it, group.query, group.examples),
    )


def another_order(it: Subject) -> Finding:
    """The same examples shuffled."""
    return _compared(
        it,
        "an answer does not hang on the order of the tests",
        "asked in batches of {n}, in the order of the data and shuffled",
        lambda group, batch: ask(it, group.query, group.examples, batch=batch),
        lambda group, batch: ask(it, group.query, _shuffled(group.examples), batch=batch),
    )


def other_companions(it: Subject) -> Finding:
    """Half of the examples beside the second half, and beside copies of one of these."""

    def beside(group: Group, batch: int, companions: Callable[[list[Example]], list[Example]]) -> dict[str, Record]:
        examples = group.examples
        half, others = examples[: len(examples) // 2], companions(examples[len(examples) // 2 :])
        found = ask(it, group.query, [each for pair in zip(half, others) for each in pair], batch=batch)
        return {example.id: found[example.id] for example in half}

    def alike(others: list[Example]) -> list[Example]:
        return [replace(others[0], id=f"{others[0].id}#{i}") for i in range(len(others))]

    return _compared(
        it,
        "an answer does not hang on its companions",
        "asked in batches of {n} beside other tests, and beside copies of one of these",
        lambda group, batch: beside(group, batch, lambda others: others),
        lambda group, batch: beside(group, batch, alike),
    )


def task_name_hidden(it: Subject) -> Finding:
    """Tests of all tasks mixed, without their names, against task by task as the run asks."""
    check = "the task's name is not needed"
    if it.stream.task_revealed:
        return Finding(check, "nothing", "the stream names the task to the method (task-incremental)", "by protocol")
    return _compared(
        it,
        check,
        "asked task by task, and mixed with the examples' names hidden",
        lambda group, batch: _task_by_task(it, group, batch),
        lambda group, batch: ask(it, group.query, _shuffled(group.examples), batch=batch, hide=_without_name),
    )


def target_hidden(it: Subject) -> Finding:
    """The method sees no target."""
    return _compared(
        it,
        "an answer is not read from the target",
        "asked with targets and without",
        lambda group, batch: ask(it, group.query, group.examples, batch=batch),
        lambda group, batch: ask(it, group.query, group.examples, batch=batch, hide=_without_target),
        state_matters=False,
    )


def groups(it: Subject) -> list[Group]:
    """Test examples of the tasks so far, evenly spread, with the question that is put to all of a group."""
    tasks = [task for task in it.stream.tasks[: it.done] if len(getattr(task, it.evaluation.split))]
    found: dict[Query, Group] = {}
    named: set[str] = set()
    for i, task in enumerate(tasks):
        share = max(it.count * (i + 1) // len(tasks) - it.count * i // len(tasks), 1)
        examples: Examples = getattr(task, it.evaluation.split)
        query = it.stream.query(task, after=it.done - 1)
        for k in range(min(share, len(examples))):
            example = examples[k * len(examples) // min(share, len(examples))]
            if example.id not in named:
                named.add(example.id)
                group = found.setdefault(query, Group(query))
                group.examples.append(example)
                group.tasks[example.id] = task.index
    return list(found.values())


def ask(
    it: Subject,
    query: Query,
    examples: Sequence[Example],
    *,
    batch: int,
    method: Any = None,
    hide: Callable[[Example], Example] = lambda example: example,
) -> dict[str, Record]:
    """Records by the examples' ids, asked as a run asks, with a predictor of their own.

    Args:
        method: another than the subject's.
        hide: gives what the method sees of an example. Records are made of the whole.
    """
    seen = _Seeing(method or it.method, hide)
    task = Task(index=0, name="audit", kind=query.kind, test=Examples.of(examples), metrics=())
    settings = replace(it.evaluation, batch_size=batch, split="test", order="dataset", metrics=())
    with tempfile.TemporaryDirectory(prefix="perdure-audit-") as folder:
        before, it.runtime.out = it.runtime.out, Path(folder)
        try:
            with predicting(seen, it.runtime):
                predict = seen.predictor(query)
            evaluate(seen, predict, task, query, replace(settings, save_predictions=True), runtime=it.runtime, after=0)
        finally:
            it.runtime.out = before
        return {record["id"]: record for record in read_records(Path(folder) / "predictions" / "0_0.jsonl")}


def alone(it: Subject, query: Query, examples: Sequence[Example]) -> dict[str, Record]:
    """One by one. Of a method that takes its tests in batches of its own size, a test set for each of eight."""
    if not hasattr(it.method, "test_batch"):
        return ask(it, query, examples, batch=1)
    return {i: record for example in examples[:8] for i, record in ask(it, query, [example], batch=1).items()}


def moved(it: Subject, before: Mapping[str, Record], after: Mapping[str, Record]) -> tuple[int, float, int]:
    """Records of both that differ beyond rounding, the largest difference of a number, and how many were compared."""
    tolerance = TOLERANCES.get(it.runtime.precision, 1e-4)
    tolerance = max(tolerance, ADAPTING) if getattr(it.method, "adapts", False) else tolerance
    shared = [name for name in before if name in after]
    pairs = [({**before[name], "id": ""}, {**after[name], "id": ""}) for name in shared]
    largest = max((_largest(a, b) for a, b in pairs), default=0.0)
    differing = sum(not _same(a, b, tolerance) for a, b in pairs)
    in_words = all(not any(isinstance(v, float) for v in a.values()) for a, _ in pairs)
    if in_words and differing <= WORDS * len(pairs):
        return 0, largest, len(pairs)
    return differing, largest, len(pairs)


def _compared(
    it: Subject,
    check: str,
    done: str,
    one: Callable[[Group, int], dict[str, Record]],
    other: Callable[[Group, int], dict[str, Record]],
    *,
    state_matters: bool = True,
) -> Finding:
    """Two ways of asking, over all groups."""
    differing, compared, largest, size = 0, 0, 0.0, 1
    for group in groups(it):
        if len(group.examples) < 4:
            continue
        batch = size = max(2, min(it.evaluation.batch_size, len(group.examples) // 2))
        try:
            found = moved(it, one(group, batch), other(group, batch))
        except PerdureError as refused:
            return Finding(check, done.format(n=batch), f"the method refuses: {refused}", "not applicable")
        except FAULTS as fault:
            said = f"the method fails when it is asked so ({type(fault).__name__}: {fault})"
            return Finding(check, done.format(n=batch), said[:200], "not applicable")
        differing, compared, largest = differing + found[0], compared + found[2], max(largest, found[1])
    done = done.format(n=size)
    if not compared:
        return Finding(check, done, "fewer than four tests share a question", "not applicable")
    if not differing:
        return Finding(check, done, f"{compared} answers the same, numbers within {largest:.0e}", "passes")
    seen = f"{differing} of {compared} answers differ, numbers by up to {largest:.2g}"
    if state_matters and getattr(it.method, "carries_state", False):
        said = "the method adapts to the tests in their order and says so (carries_state): report over several orders"
        return Finding(check, done, f"{seen}; {said}", "by protocol")
    if state_matters and hasattr(it.method, "test_batch"):
        said = "the method answers a batch of tests at once and says so (test_batch): report its size"
        return Finding(check, done, f"{seen}; {said}", "by protocol")
    return Finding(check, done, seen, "leaks")


def _task_by_task(it: Subject, group: Group, batch: int) -> dict[str, Record]:
    """The examples of a group with those of their task alone."""
    found: dict[str, Record] = {}
    for index in sorted({group.tasks[example.id] for example in group.examples}):
        own = [example for example in group.examples if group.tasks[example.id] == index]
        found |= ask(it, group.query, own, batch=batch)
    return found


class _Seeing:
    """A method that sees of each example what `hide` leaves."""

    def __init__(self, method: Any, hide: Callable[[Example], Example]) -> None:
        self._method, self._hide = method, hide

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def preprocess(self, example: Example, training: bool) -> Batch:
        return self._method.preprocess(self._hide(example), training)


def _without_name(example: Example) -> Example:
    return replace(example, id="hidden")


def _without_target(example: Example) -> Example:
    return replace(example, target=None)


def _shuffled(examples: Sequence[Example]) -> list[Example]:
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(len(examples)))
    return [examples[i] for i in order.tolist()]


def _same(a: Any, b: Any, tolerance: float) -> bool:
    """Numbers alike and, where the numbers leave no doubt, the same words and labels: of two equal scores, rounding may
    put either first."""
    if close(a, b, tolerance):
        return True
    numbers = [name for name, value in a.items() if isinstance(value, float)]
    tie = bool(numbers) and all(close(a[name], b.get(name), tolerance) for name in numbers)
    return tie and _has_tie(a, tolerance) and _has_tie(b, tolerance)


def _has_tie(record: Record, tolerance: float) -> bool:
    shown = record.get("probabilities", [])
    return any(abs(x - y) <= tolerance for x, y in pairwise(shown))


def _largest(a: Record, b: Record) -> float:
    pairs = [(a[name], b.get(name)) for name in a if isinstance(a[name], float)]
    return max((abs(x - y) for x, y in pairs if isinstance(y, float)), default=0.0)
