"""How checks run a method: whole, stopped and resumed, its records, its weights, and when two states are equal.

Knows the Protocol, runs, and a runtime that stops. Does not know what is checked.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.errors import Interrupted
from perdure.evaluate import Evaluation, evaluate, predicting, read_records
from perdure.loop import Scores, run, seed_everything
from perdure.runtime import Runtime, Steps
from perdure.runtime.placing import modules
from perdure.types import Method, Stream, Task

Make = Callable[[], Method]


@dataclass(frozen=True)
class Learned:
    """What one whole run gave. States and weights are copies: what checks do to the method afterwards changes none."""

    scores: Scores
    method: Method
    frozen: dict[str, Tensor]
    """Parameters that were frozen when the method was made, as they were then."""
    state: Any
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """A method and a stream under check."""

    make: Make
    stream: Stream

    @cached_property
    def learned(self) -> Learned:
        """A whole run, made once for all checks that look at what one leaves behind."""
        seed_everything(0)
        method = self.make()
        frozen = {n: p.detach().clone() for n, p in parameters(method).items() if not p.requires_grad}
        scores = go(method, self.stream, quiet(None))
        return Learned(scores, method, frozen, copied(method.state_dict()), weights(method))


class Stopping(Runtime):
    """Is stopped after some steps or tasks: by a signal (which saves) or by a kill (which does not)."""

    def __init__(
        self, out: Path, *, after_steps: int | None = None, after_tasks: int | None = None, saving: bool = True
    ) -> None:
        super().__init__(device="cpu", out=out, quiet=True, save_every=1e9 if saving else 0.0)
        self.steps_left, self.tasks_left, self.saving = after_steps, after_tasks, saving

    def steps(self, stage: str, *, total: int, state: Mapping[str, Any], label: str = "") -> Steps:
        return _CountedSteps(self, stage, total=total, state=state, label=label or stage)

    def log(self, event: str, **values: Any) -> None:
        super().log(event, **values)
        if event == "task" and self.tasks_left is not None:
            self.tasks_left -= 1
            self.stop_requested = self.stop_requested or self.tasks_left == 0

    def count_step(self) -> None:
        if self.steps_left is None:
            return
        self.steps_left -= 1
        if self.steps_left == 0:
            if not self.saving:
                raise Interrupted("killed")
            self.stop_requested = True


class _CountedSteps(Steps):
    def __iter__(self):
        for step in super().__iter__():
            assert isinstance(self.runtime, Stopping)
            self.runtime.count_step()
            yield step


def quiet(out: Path | None) -> Runtime:
    """A runtime on the CPU."""
    return Runtime(device="cpu", out=out, quiet=True)


def run_fresh(make: Make, stream: Stream, runtime: Runtime | None = None) -> tuple[Scores, Method]:
    seed_everything(0)
    method = make()
    return go(method, stream, runtime or quiet(None)), method


def go(method: Method, stream: Stream, runtime: Runtime, *, start: bool = False) -> Scores:
    return run(method, stream, evaluation=Evaluation(batch_size=4, start=start), runtime=runtime)


def run_until_finished(make: Make, stream: Stream, runtimes: Iterable[Runtime]) -> tuple[Scores, Method]:
    for runtime in runtimes:
        try:
            return run_fresh(make, stream, runtime)
        except Interrupted:
            continue
    raise AssertionError("a run that is stopped and resumed again and again makes no progress")


def records(
    method: Method, stream: Stream, task: Task, after: int, *, batch_size: int = 4, stopped: bool = False
) -> list[dict[str, Any]]:
    """What a method answers to a task's tests, in one go or stopped after the first batch."""
    query, settings = stream.query(task, after=after), Evaluation(batch_size=batch_size)
    with tempfile.TemporaryDirectory() as folder:
        for stop in (True, False) if stopped else (False,):
            runtime = quiet(Path(folder))
            runtime.stop_requested = stop
            with predicting(method, runtime):
                predict = method.predictor(query)
            with contextlib.suppress(Interrupted):
                evaluate(method, predict, task, query, settings, runtime=runtime, after=after)
        return read_records(Path(folder) / "predictions" / f"{after}_{task.index}.jsonl")


def parameters(method: Method) -> dict[str, Tensor]:
    """All parameters of the method's models, wherever it keeps them."""
    return {f"{name}.{n}": p for name, module in modules(method).items() for n, p in module.named_parameters()}


def weights(method: Method) -> dict[str, Tensor]:
    """A copy of all parameters and buffers of the method's models."""
    found = modules(method).items()
    return {f"{name}.{n}": t.detach().clone() for name, module in found for n, t in module.state_dict().items()}


def copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: copied(value) for key, value in state.items()}
    return [copied(value) for value in state] if isinstance(state, list | tuple) else state


def assert_equal_state(a: Any, b: Any, message: str, where: str = "state") -> None:
    if isinstance(a, Tensor):
        same = isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        assert same, f"{message} (at {where})"
    elif isinstance(a, Mapping):
        assert isinstance(b, Mapping) and set(a) == set(b), f"{message} (other names at {where})"
        for key in a:
            assert_equal_state(a[key], b[key], message, f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), f"{message} (other lengths at {where})"
        for i, (x, y) in enumerate(zip(a, b)):
            assert_equal_state(x, y, message, f"{where}[{i}]")
    else:
        assert a == b, f"{message} (at {where}: {a!r} and {b!r})"


def close(a: Any, b: Any, tolerance: float = 1e-4) -> bool:
    """Equal up to the rounding of sums that are taken in another order."""
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(close(*pair, tolerance) for pair in zip(a, b))
    return a == b
