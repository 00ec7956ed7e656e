"""A stream gone through in little, with a clock: what learning, testing and saving cost on this machine.

Knows a recipe, shortened tasks and test sets, and what of it is on disk and in memory. Does not know what the figures
say of the whole run (`forecast`), nor methods or models by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from perdure import calibration, checkpoint, device_memory, loop
from perdure import recipe as recipes
from perdure.evaluate import answered, measured, predicting
from perdure.recipe import Recipe
from perdure.run_folder.run_files import checkpoint_file
from perdure.runtime import devices
from perdure.runtime.devices import seed_torch
from perdure.runtime.placing import place
from perdure.testing.miniature import Miniature, Stage, clocks, runtime_of, shortened
from perdure.types import NO_EXAMPLES, Examples, Stream, Task

ASKED = 8
"""Tasks that are tested at most, spread over the stream."""
TESTING = 1.5
"""Seconds for which the tests of a task are asked, as far as a batch allows."""
READ, READING = 64, 3.0
"""Examples that are read at a time, and seconds, to see what their first reading takes."""
LONGEST = 5.0
"""Seconds beyond which no whole batch of tests is asked."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A task in little."""

    task: Task
    stages: list[Stage]
    rest: np.ndarray
    """Times (`clocks`) of all that is not a step of a stage."""


@dataclass(frozen=True, kw_only=True)
class Questioned:
    """Some of a task's tests, after one was learned."""

    after: int
    asked: int
    candidates: int
    n: int
    """Examples that were asked."""
    cost: np.ndarray
    """Of one more example: float64 [3], its times (`clocks`) and the bytes of its record."""
    fixed: np.ndarray
    """Of a test, however many its examples: metrics that start programs of their own. [3], no bytes."""
    predictor: np.ndarray
    """Of making the predictor: [3], no bytes."""


@dataclass(kw_only=True)
class Passage:
    """What going through a stream showed."""

    build: np.ndarray
    """Times of loading models and making the method."""
    learned: list[Learned] = field(default_factory=list)
    tested: list[Questioned] = field(default_factory=list)
    saves: dict[int, np.ndarray] = field(default_factory=dict)
    """After a task, by its index: [3], times and bytes of the resume point."""
    event_bytes: float = 0.0
    """Of a step."""
    alive: int = 0
    """Most bytes of tensors."""
    peak_memory: dict[str, int] = field(default_factory=dict)
    calibrated: int = 0
    """Validation examples that are asked after the last task."""
    device: str = ""
    first_reading: dict[str, np.ndarray] = field(default_factory=dict)
    """By split: times that an example takes on top when it is made for the first time, as where data keep what they
    have drawn or unpacked. All other figures are of examples that were made before."""


def spread(count: int, most: int = ASKED) -> list[int]:
    """Positions in 0..count-1, at most so many, the first two and the last among them."""
    evenly = np.linspace(0, count - 1, min(count, most - 1)).round().astype(int)
    return sorted({*evenly.tolist(), *range(min(count, 2))})


def go_through(
    asked: Recipe,
    stream: Stream,
    folder: Path,
    *,
    counts: Sequence[int],
    limit: int = 1,
    patience: float = 0.0,
    tests: bool = False,
    counts_alive: bool = True,
) -> Passage:
    """Learn tasks in their order, as many as there are `counts`, with so many examples each.

    Args:
        folder: empty; holds the run's files meanwhile.
        limit, patience: steps and seconds for a stage of the tasks that are looked at (`spread`); one step elsewhere.
        tests: ask also, after the first and the last task.

    Raises:
        TrainingError: a loss is not finite.
    """
    began = clocks()
    method, _ = recipes.build_method(asked, asked.run.seed)
    runtime = runtime_of(asked, folder)
    place(method, runtime)
    found = Passage(build=clocks() - began)
    runtime.counts_alive, runtime.patience = counts_alive, patience
    looked, last = spread(len(counts)), len(counts) - 1
    found.first_reading = {split: _first_reading(stream, split) for split in ("train", asked.evaluate.split)}
    with device_memory.explained(asked, runtime):
        for task, count in zip(stream, counts):
            runtime.limit = limit if task.index in looked else 1
            little = shortened(task, count) if count else task
            _make(little.train)
            found.learned.append(_learn(method, little, runtime))
            if task.index in (0, last):
                found.saves[task.index] = _save(method, runtime)
            if tests and task.index in (0, last):
                asked_now = loop.PLANS[asked.evaluate.plan](stream, task.index)
                chosen = [asked_now[i] for i in spread(len(asked_now))] if task.index == last else asked_now[:1]
                found.tested += [_test(method, stream, each, task.index, asked, runtime) for each in chosen]
    steps = sum(len(stage.times) for stage in runtime.stages)
    events = folder / "events.jsonl"
    runtime.flush()
    found.event_bytes = events.stat().st_size / steps if steps and events.exists() else 0.0
    found.alive, found.peak_memory = runtime.alive, runtime.peak_memory()
    found.device = devices.full_name(runtime.device)
    found.calibrated = calibration.examples(method, stream)
    return found


def _first_reading(stream: Stream, split: str) -> np.ndarray:
    """Of an example: the tasks in their order, as a run reads them, for `READING` at most; less what reading the last
    of them once more takes."""
    began, read, block = clocks(), 0, NO_EXAMPLES
    for block in _blocks(stream, split):
        _make(block)
        read += len(block)
        if clocks()[0] - began[0] > READING:
            break
    took, began = clocks() - began, clocks()
    _make(block)
    return np.maximum(took / max(read, 1) - (clocks() - began) / max(len(block), 1), 0)


def _blocks(stream: Stream, split: str) -> Iterator[Examples]:
    for task in stream:
        examples: Examples = getattr(task, split)
        yield from (examples[i : i + READ] for i in range(0, len(examples), READ))


def _make(examples: Examples) -> None:
    for _ in examples:
        pass


def _learn(method: Any, task: Task, runtime: Miniature) -> Learned:
    runtime.task = task.index
    seed_torch(runtime.key("learn"))
    before, looking, began = len(runtime.stages), runtime.looking, clocks()
    method.learn(task, runtime)
    whole = clocks() - began - (runtime.looking - looking)
    runtime.look()
    stages = runtime.stages[before:]
    return Learned(task=task, stages=stages, rest=whole - sum((t for s in stages for t in s.times), np.zeros(2)))


def _save(method: Any, runtime: Miniature) -> np.ndarray:
    assert runtime.out is not None
    began, file = clocks(), checkpoint_file(runtime.out)
    checkpoint.save(file, {"method": method.state_dict()})
    return np.append(clocks() - began, file.stat().st_size)


def _test(method: Any, stream: Stream, task: Task, after: int, asked: Recipe, runtime: Miniature) -> Questioned:
    """Two examples to warm up and to guess by, then a batch, then more while there is time. Metrics are timed by
    themselves: with few records and with more."""
    settings = asked.evaluate
    examples = getattr(task, settings.split)
    query, whole = stream.query(task, after=after), len(examples)
    batch = min(getattr(method, "test_batch", settings.batch_size) or whole, whole)

    def ask(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chosen = examples.select(np.linspace(0, whole - 1, count).round().astype(int).tolist())
        _make(chosen)
        began = clocks()
        with predicting(method, runtime):
            predict = method.predictor(query)
        made = clocks()
        little = replace(task, **{settings.split: chosen})
        found = answered(method, predict, little, query, settings, runtime=runtime, after=after)
        said = clocks()
        measured(little, settings, found)
        return made - began, said - made, clocks() - said

    few = count = min(2, whole)
    made, took, scored = ask(count)
    begun = scored
    for target in (batch, whole):
        each = took[0] / count
        fits = math.ceil((LONGEST if target == batch else TESTING) / max(each, 1e-9))
        more = target if target <= fits else fits // batch * batch or fits
        if more > count:
            count = more
            made, took, scored = ask(count)
    per_record = np.maximum(scored - begun, 0) / max(count - few, 1)
    file = runtime.out / "predictions" / f"{after}_{task.index}.jsonl" if runtime.out else None
    size = file.stat().st_size if file is not None and file.exists() else 0
    return Questioned(
        after=after,
        asked=task.index,
        candidates=len(query.candidates),
        n=count,
        cost=np.append(took, size) / max(count, 1) + np.append(per_record, 0),
        fixed=np.append(np.maximum(scored - count * per_record, 0), 0),
        predictor=np.append(made, 0),
    )
