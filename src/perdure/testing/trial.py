"""A recipe tried for a few steps: the real data, models and method, and nothing kept on disk.

Knows the first task, a runtime whose stages end early, and what each step gave. Does not know methods or models by
name, nor how the result is shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from perdure import device_memory
from perdure import recipe as recipes
from perdure.recipe import Recipe
from perdure.recipe.plan import largest_batch
from perdure.runtime import Runtime, Steps
from perdure.runtime.devices import seed_torch
from perdure.runtime.placing import place
from perdure.types import Examples, Stream, Task


@dataclass(kw_only=True)
class Stage:
    """What the first steps of a stage gave."""

    name: str
    parameters: int
    """Trained numbers."""
    losses: list[float | None] = field(default_factory=list)
    """One a step; None where the stage has no loss."""
    seconds: list[float] = field(default_factory=list)
    """One a step, with the reading of its batch."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a trial showed."""

    stages: list[Stage]
    """In order; empty where the method learns without steps."""
    device: str
    precision: str
    examples: int
    """Training examples of the first task that were used."""
    peak_memory: dict[str, int]
    """Bytes: `resident`, and `gpu` on a GPU."""


def first_steps(asked: Recipe, stream: Stream, steps: int) -> Trial:
    """Learn the first task with `steps` steps in each of its stages, from as many examples as those take.

    Raises:
        TrainingError: a loss is not finite.
    """
    asked = asked.for_seed(asked.seeds[0])
    settings = asked.run
    runtime = _Trying(
        seed=settings.seed,
        device=settings.device,
        precision=settings.precision,
        matmul=settings.matmul,
        compile=settings.compile,
        unreadable=settings.unreadable,
        workers=settings.workers,
        threads=settings.threads,
        quiet=True,
    )
    runtime.limit = steps
    task = shortened(stream.tasks[0], batches=steps, batch_size=largest_batch(asked))
    method, _ = recipes.build_method(asked, settings.seed)
    place(method, runtime)
    runtime.task = task.index
    seed_torch(runtime.key("learn"))
    with device_memory.explained(asked, runtime):
        method.learn(task, runtime)
    return Trial(
        stages=runtime.stages,
        device=str(runtime.device),
        precision=settings.precision,
        examples=len(task.train),
        peak_memory=runtime.peak_memory(),
    )


def shortened(task: Task, *, batches: int, batch_size: int) -> Task:
    """The task with no more training examples than some batches hold, of all classes alike, at least two of each."""
    if own := task.facts.get("batches"):
        own = own[:batches]
        return replace(task, train=task.train[: sum(own)], facts={**task.facts, "batches": own})
    if task.kind != "classify":
        return replace(task, train=task.train[: batches * batch_size])
    return replace(task, train=_of_all_classes(task.train, max(batches * batch_size, 2 * len(task.candidates))))


def _of_all_classes(examples: Examples, count: int) -> Examples:
    """The first `count` examples where the classes take turns, in their own order."""
    seen: dict[Any, int] = {}
    turns = []
    for position, target in enumerate(examples.targets):
        seen[target] = seen.get(target, 0) + 1
        turns.append((seen[target], position))
    return examples.select(sorted(position for _, position in sorted(turns)[:count]))


class _Trying(Runtime):
    """A runtime that keeps nothing, whose stages end after `limit` steps."""

    limit = 1

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.stages: list[Stage] = []

    def steps(self, stage: str, *, total: int, state: Mapping[str, Any], label: str = "") -> Steps:
        self.stages.append(Stage(name=stage, parameters=_trained(state)))
        steps = _FirstSteps(self, stage, total=total, state=state, label=label or stage)
        steps.record, steps.limit = self.stages[-1], self.limit
        return steps

    def log(self, event: str, **values: Any) -> None:
        """Nothing is kept."""


class _FirstSteps(Steps):
    record: Stage
    limit: int

    def __iter__(self) -> Iterator[int]:
        began = time.perf_counter()
        for step in super().__iter__():
            yield step
            loss = self.shown.get("loss")
            self.record.losses.append(None if loss is None else float(loss))  # reading it waits for the device
            now = time.perf_counter()
            self.record.seconds.append(now - began)
            began = now
            if len(self.record.seconds) == self.limit:
                self.stop()


def _trained(state: Mapping[str, Any]) -> int:
    """Numbers in a stage's state that want a gradient."""
    found: dict[int, Tensor] = {}
    for item in state.values():
        if isinstance(item, nn.Module):
            tensors = list(item.parameters())
        elif isinstance(item, torch.optim.Optimizer):
            tensors = [p for group in item.param_groups for p in group["params"]]
        else:
            tensors = [t for t in item.values() if isinstance(t, Tensor)] if isinstance(item, Mapping) else []
        found |= {id(t): t for t in tensors if t.requires_grad}
    return sum(t.numel() for t in found.values())
