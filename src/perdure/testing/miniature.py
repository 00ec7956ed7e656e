"""A run in little: the real data, models and method, tasks with some of their examples, stages that end early.

Knows how a task is shortened, how long each step took, and what tensors are alive. Does not know methods or models by
name, nor what is made of the figures.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perdure.recipe import Recipe
from perdure.runtime import Runtime, Steps
from perdure.types import Examples, Task


@dataclass(kw_only=True)
class Stage:
    """What the first steps of a stage gave."""

    name: str
    task: int
    """Index of the task."""
    parameters: int
    """Trained numbers."""
    total: int
    """Steps that it would have taken."""
    losses: list[float | None] = field(default_factory=list)
    """One a step; None where the stage has no loss."""
    times: list[np.ndarray] = field(default_factory=list)
    """One a step, with the reading of its batch: see `clocks`."""

    @property
    def seconds(self) -> list[float]:
        """Of each step, by the clock on the wall."""
        return [float(pair[0]) for pair in self.times]

    @property
    def later(self) -> list[np.ndarray]:
        """Times after the first step, in which much is made ready; of it alone where there is no other."""
        return self.times[1:] or self.times


class Miniature(Runtime):
    """A runtime whose stages end after `limit` steps, or when `patience` is over and two were made."""

    limit = 1
    patience = float("inf")
    """Seconds."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.stages: list[Stage] = []
        self.alive = 0
        """Most bytes of tensors that were alive when a stage began, where that is asked for by `counts_alive`."""
        self.counts_alive = False
        self.looking = np.zeros(2)
        """Times that looking for them took."""

    def steps(self, stage: str, *, total: int, state: Mapping[str, Any], label: str = "") -> Steps:
        self.look()
        self.stages.append(Stage(name=stage, task=self.task, parameters=_trained(state), total=total))
        steps = _FirstSteps(self, stage, total=total, state=state, label=label or stage)
        steps.record, steps.limit, steps.patience = self.stages[-1], self.limit, self.patience
        return steps

    def look(self) -> None:
        """Note the tensors that are alive."""
        if self.counts_alive:
            began = clocks()
            self.alive = max(self.alive, alive())
            self.looking = self.looking + clocks() - began


def runtime_of(asked: Recipe, out: Path | None) -> Miniature:
    """The recipe's runtime, in little.

    Args:
        out: the run's folder; None keeps nothing.
    """
    return Miniature(**asked.run.for_runtime(), out=out, quiet=True)


def clocks() -> np.ndarray:
    """Seconds by the clock on the wall, and seconds of all cores of this process: float64 [2]."""
    return np.array([time.perf_counter(), time.process_time()])


def shortened(task: Task, count: int) -> Task:
    """The task with about `count` training examples: of all classes alike, at least two of each; whole batches where
    the stream brings its own."""
    if own := task.facts.get("batches"):
        kept = 1 + int(np.searchsorted(np.cumsum(own), count, side="left"))
        own = own[:kept]
        return replace(task, train=task.train[: sum(own)], facts={**task.facts, "batches": own})
    if task.kind != "classify":
        return replace(task, train=task.train[:count])
    return replace(task, train=_of_all_classes(task.train, max(count, 2 * len(task.candidates))))


def alive() -> int:
    """Bytes of all tensors that are alive on any device, those that share memory counted once."""
    found = {}
    for item in gc.get_objects():
        if issubclass(type(item), Tensor) and item.layout is torch.strided:
            storage = item.untyped_storage()
            with suppress(RuntimeError):  # a tensor without memory, which a compiler keeps
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _of_all_classes(examples: Examples, count: int) -> Examples:
    """The first `count` examples where the classes take turns, in their own order."""
    seen: dict[Any, int] = {}
    turns = []
    for position, target in enumerate(examples.targets):
        seen[target] = seen.get(target, 0) + 1
        turns.append((seen[target], position))
    return examples.select(sorted(position for _, position in sorted(turns)[:count]))


class _FirstSteps(Steps):
    record: Stage
    limit: int
    patience: float

    def __iter__(self) -> Iterator[int]:
        start = began = clocks()
        for step in super().__iter__():
            yield step
            loss = self.shown.get("loss")
            self.record.losses.append(None if loss is None else float(loss))  # reading it waits for the device
            now = clocks()
            self.record.times.append(now - began)
            began, made = now, len(self.record.times)
            enough = made >= self.limit or (made > 2 and now[0] - start[0] > self.patience)
            if enough and made >= self.together:
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
