"""Checks that every method passes, for anyone's method, and tiny streams to run them on.

`check_method` is to a perdure method what scikit-learn's ``check_estimator`` is to an estimator. It knows
the Protocol alone. A method that must break a rule declares so by the check's name in `allow`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perdure import checkpoint
from perdure.errors import Interrupted, PerdureError
from perdure.evaluate import Evaluation, evaluate, read_records
from perdure.run import Scores, run, seed_everything
from perdure.runtime import Runtime, Steps
from perdure.types import NO_EXAMPLES, Example, Examples, Method, Stream, Task

Make = Callable[[], Method]


def check_method(make: Make, stream: Stream | None = None, *, allow: Collection[str] = ()) -> list[str]:
    """Assert that a method behaves.

    Args:
        make: builds a fresh method, models included; it is called often and must give equal methods
            under equal torch seeds.
        stream: two or more tiny tasks of a kind that the method answers; default `tiny_stream()`.
        allow: names of checks that the method declares not to pass.

    Returns:
        The names of the checks that were made.

    Raises:
        AssertionError: a check failed; the message begins with its name.
        ValueError: `allow` names no check.
    """
    if unknown := set(allow) - set(CHECKS):
        raise ValueError(f"allow names no check: {', '.join(sorted(unknown))}. Checks: {', '.join(CHECKS)}")
    stream = stream or tiny_stream()
    made = []
    for name, check in CHECKS.items():
        if name not in allow:
            try:
                check(make, stream)
            except AssertionError as fault:
                raise AssertionError(f"{name}: {fault}") from fault
            made.append(name)
    return made


# -- checks -------------------------------------------------------------------------------------------------


def _runs_and_scores_every_seen_task(make: Make, stream: Stream) -> None:
    scores, _ = _run(make, stream)
    expected = {(after, asked) for after in range(len(stream)) for asked in range(after + 1)}
    found = {(row["after"], row["asked"]) for row in scores.rows}
    assert found == expected, f"scores of {sorted(found)} instead of {sorted(expected)}"


def _same_seed_same_scores(make: Make, stream: Stream) -> None:
    (first, a), (second, b) = _run(make, stream), _run(make, stream)
    assert first.rows == second.rows, "two runs with one seed gave other scores"
    _assert_equal_state(a.state_dict(), b.state_dict(), "two runs with one seed ended in other states")


def _resuming_equals_never_stopping(make: Make, stream: Stream) -> None:
    whole, expected = _run(make, stream)
    for stop_at, saving in ((1, True), (2, True), (5, True), (1, False), (3, False)):
        how = f"stopped {'and saved' if saving else 'without saving'} after {stop_at} steps"
        with tempfile.TemporaryDirectory() as folder:
            runtimes = (
                # A kill is tried once: killed each time before anything is saved, no run could make progress.
                _Stopping(Path(folder), after_steps=stop_at if saving or turn == 0 else None, saving=saving)
                for turn in range(200)
            )
            scores, method = _run_until_finished(make, stream, runtimes)
        assert scores.rows == whole.rows, f"a run {how} gave other scores"
        _assert_equal_state(method.state_dict(), expected.state_dict(), f"a run {how} ended in another state")


def _resuming_between_tasks_equals_never_stopping(make: Make, stream: Stream) -> None:
    whole, expected = _run(make, stream)
    with tempfile.TemporaryDirectory() as folder:
        runtimes = (_Stopping(Path(folder), after_tasks=1) for _ in stream)
        scores, method = _run_until_finished(make, stream, runtimes)
    assert scores.rows == whole.rows, "stopping after each task gave other scores: state_dict lacks something"
    _assert_equal_state(method.state_dict(), expected.state_dict(), "stopping after each task changed the state")


def _state_is_tensors_and_json_and_complete(make: Make, stream: Stream) -> None:
    _, method = _run(make, stream)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.safetensors"
        checkpoint.save(file, method.state_dict())
        seed_everything(1)
        fresh = make()
        fresh.load_state_dict(checkpoint.load(file))
    last = len(stream) - 1
    for task in stream:
        ours, theirs = _records(method, stream, task, last), _records(fresh, stream, task, last)
        assert ours == theirs, "a fresh method with the saved state answers differently: state_dict lacks something"


def _predicting_leaves_the_state_unchanged(make: Make, stream: Stream) -> None:
    _, method = _run(make, stream)
    if getattr(method, "carries_state", False):
        return
    before = _copy(method.state_dict()), _weights(method)
    for task in stream:
        _records(method, stream, task, len(stream) - 1)
    _assert_equal_state(before[0], method.state_dict(), "predicting changed the state")
    _assert_equal_state(before[1], _weights(method), "predicting changed the weights of a model")


def _answers_do_not_depend_on_batch_mates(make: Make, stream: Stream) -> None:
    """Nor on the order of the examples; nor, for any method, on whether the test was stopped and went on."""
    _, method = _run(make, stream)
    for task in stream:
        ways: list[tuple[str, Task, dict[str, Any]]] = [("a test that was stopped", task, {"stopped": True})]
        if not getattr(method, "carries_state", False):
            turned = replace(task, test=task.test.select(range(len(task.test))[::-1]))
            ways += [*((f"batches of {n}", task, {"batch_size": n}) for n in (2, 5)), ("another order", turned, {})]
        alone = _records(method, stream, task, len(stream) - 1, batch_size=1)
        for way, same, how in ways:
            found = {r["id"]: r for r in _records(method, stream, same, len(stream) - 1, **{"batch_size": 1} | how)}
            assert _close({r["id"]: r for r in alone}, found), f"answers differ between batches of 1 and {way}"


def _candidates_are_encoded_once_per_query(make: Make, stream: Stream) -> None:
    _, method = _run(make, stream)
    task = stream.tasks[-1]
    runtime = _runtime(None)
    query = stream.query(task, after=task.index)
    with torch.set_grad_enabled(getattr(method, "adapts", False)):
        predict = method.predictor(query)
    calls: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for model in _modules(method).values()
        for name, module in model.named_modules()
        if name.endswith(("text_model", "text_projection"))
    ]
    evaluate(method, predict, task, query, Evaluation(batch_size=1), runtime=runtime, after=0)
    for hook in hooks:
        hook.remove()
    adapting = getattr(method, "adapts", False)
    assert adapting or not calls, f"{len(calls)} calls of {sorted(set(calls))} while predicting"


def _frozen_weights_stay_bitwise_unchanged(make: Make, stream: Stream) -> None:
    seed_everything(0)
    method = make()
    frozen = {n: p.detach().clone() for n, p in _parameters(method).items() if not p.requires_grad}
    _go(method, stream, _runtime(None))
    after = _parameters(method)
    changed = [n for n, tensor in frozen.items() if n in after and not torch.equal(tensor, after[n])]
    assert not changed, f"frozen parameters changed: {', '.join(changed[:5])}"


def _degenerate_tasks_work_or_say_why(make: Make, stream: Stream) -> None:
    first = stream.tasks[0]
    one_class = [i for i, target in enumerate(first.train.targets) if target == first.train.targets[0]]
    cases: dict[str, Task] = {"one example": replace(first, train=first.train.select([0]))}
    if first.candidates:
        alone = replace(first, candidates=first.candidates[:1], train=first.train.select(one_class))
        tests = [i for i, target in enumerate(first.test.targets) if target == first.offset]
        cases["one class"] = replace(alone, test=first.test.select(tests))
    cases["empty train"] = replace(first, train=NO_EXAMPLES)
    for name, task in cases.items():
        try:
            scores, _ = _run(make, replace(stream, tasks=(task,)))
        except PerdureError as said:
            assert str(said), f"a task with {name} is refused without a reason"
        else:
            assert len(scores.rows) == 1, f"a task with {name} was not scored"


def _learning_reads_no_future_task_and_no_test_example(make: Make, stream: Stream) -> None:
    seed_everything(0)
    method, runtime = make(), _runtime(None)
    read: set[str] = set()
    original = Examples.__getitem__

    def watched(self: Examples, index: Any) -> Any:
        item = original(self, index)
        read.update([item.id] if isinstance(item, Example) else ())
        return item

    allowed: set[str] = set()
    Examples.__getitem__ = watched  # type: ignore[method-assign]
    try:
        for task in stream:
            allowed |= {e.id for part in (task.train, task.validation) for e in part}
            read.clear()
            runtime.task = task.index
            method.learn(task, runtime)
            assert not read - allowed, f"while learning task {task.index} it read {sorted(read - allowed)[:3]}"
    finally:
        Examples.__getitem__ = original  # type: ignore[method-assign]


CHECKS: Mapping[str, Callable[[Make, Stream], None]] = {
    check.__name__.lstrip("_"): check
    for check in (
        _runs_and_scores_every_seen_task,
        _same_seed_same_scores,
        _state_is_tensors_and_json_and_complete,
        _resuming_between_tasks_equals_never_stopping,
        _resuming_equals_never_stopping,
        _predicting_leaves_the_state_unchanged,
        _answers_do_not_depend_on_batch_mates,
        _candidates_are_encoded_once_per_query,
        _frozen_weights_stay_bitwise_unchanged,
        _degenerate_tasks_work_or_say_why,
        _learning_reads_no_future_task_and_no_test_example,
    )
}
"""Every check by name: the sentence that it asserts."""


# -- tiny streams -------------------------------------------------------------------------------------------


def tiny_stream(*, tasks: int = 3, classes: int = 2, train: int = 6, test: int = 4, size: int = 32) -> Stream:
    """Class-incremental images that a linear model can tell apart: one base color a class, with noise.

    Args:
        tasks: number of tasks, each with `classes` new classes.
        train: training images a class; `test`: test images a class.
        size: height and width in pixels.
    """
    made = []
    for index in range(tasks):
        offset = index * classes
        labels = range(offset, offset + classes)
        made.append(
            Task(
                index=index,
                name=f"task {index}",
                kind="classify",
                candidates=tuple(f"color {label}" for label in labels),
                offset=offset,
                train=_images(labels, train, size, "train"),
                test=_images(labels, test, size, "test"),
            )
        )
    return Stream(name="tiny", tasks=tuple(made))


def _images(labels: Sequence[int], per_class: int, size: int, split: str) -> Examples:
    return Examples.of(
        [
            Example(id=f"{split}/{label}/{i}", inputs={"image": _image(label, i, size, split)}, target=label)
            for label in labels
            for i in range(per_class)
        ]
    )


def _image(label: int, i: int, size: int, split: str) -> np.ndarray:
    """uint8 [size, size, 3]."""
    rng = np.random.default_rng([label, i, split == "test"])
    base = np.random.default_rng(label).integers(40, 216, 3)
    noise = rng.integers(-30, 31, (size, size, 3))
    return np.clip(base + noise, 0, 255).astype(np.uint8)


# -- how the checks run a method ----------------------------------------------------------------------------


class _Stopping(Runtime):
    """Is stopped after some steps or tasks: by a signal (which saves) or by a kill (which does not)."""

    def __init__(
        self, out: Path, *, after_steps: int | None = None, after_tasks: int | None = None, saving: bool = True
    ) -> None:
        super().__init__(device="cpu", out=out, quiet=True, save_every=1e9 if saving else 0.0)
        self.steps_left, self.tasks_left, self.saving = after_steps, after_tasks, saving

    def steps(self, stage: str, *, total: int, state: Mapping[str, Any], every: str = "") -> Steps:
        return _CountedSteps(self, stage, total=total, state=state, label=every or stage)

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
            assert isinstance(self.runtime, _Stopping)
            self.runtime.count_step()
            yield step


def _runtime(out: Path | None) -> Runtime:
    return Runtime(device="cpu", out=out, quiet=True)


def _run(make: Make, stream: Stream, runtime: Runtime | None = None) -> tuple[Scores, Method]:
    seed_everything(0)
    method = make()
    return _go(method, stream, runtime or _runtime(None)), method


def _go(method: Method, stream: Stream, runtime: Runtime) -> Scores:
    return run(method, stream, evaluation=Evaluation(batch_size=4), runtime=runtime)


def _run_until_finished(make: Make, stream: Stream, runtimes: Iterable[Runtime]) -> tuple[Scores, Method]:
    for runtime in runtimes:
        try:
            return _run(make, stream, runtime)
        except Interrupted:
            continue
    raise AssertionError("a run that is stopped and resumed again and again makes no progress")


def _records(
    method: Method, stream: Stream, task: Task, after: int, *, batch_size: int = 4, stopped: bool = False
) -> list[dict[str, Any]]:
    query, settings = stream.query(task, after=after), Evaluation(batch_size=batch_size)
    with tempfile.TemporaryDirectory() as folder, torch.set_grad_enabled(getattr(method, "adapts", False)):
        for stop in (True, False) if stopped else (False,):
            runtime = _runtime(Path(folder))
            runtime.stop_requested = stop
            with contextlib.suppress(Interrupted):
                evaluate(method, method.predictor(query), task, query, settings, runtime=runtime, after=after)
        return read_records(Path(folder) / "predictions" / f"{after}_{task.index}.jsonl")


def _modules(method: Method) -> dict[str, nn.Module]:
    return {name: value for name, value in vars(method).items() if isinstance(value, nn.Module)}


def _parameters(method: Method) -> dict[str, Tensor]:
    modules = _modules(method).items()
    return {f"{name}.{n}": p for name, module in modules for n, p in module.named_parameters()}


def _weights(method: Method) -> dict[str, Tensor]:
    """A copy of all parameters and buffers of the method's models."""
    modules = _modules(method).items()
    return {f"{name}.{n}": t.detach().clone() for name, module in modules for n, t in module.state_dict().items()}


def _copy(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _copy(value) for key, value in state.items()}
    return [_copy(value) for value in state] if isinstance(state, list | tuple) else state


def _assert_equal_state(a: Any, b: Any, message: str, where: str = "state") -> None:
    if isinstance(a, Tensor):
        same = isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        assert same, f"{message} (at {where})"
    elif isinstance(a, Mapping):
        assert isinstance(b, Mapping) and set(a) == set(b), f"{message} (other names at {where})"
        for key in a:
            _assert_equal_state(a[key], b[key], message, f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), f"{message} (other lengths at {where})"
        for i, (x, y) in enumerate(zip(a, b)):
            _assert_equal_state(x, y, message, f"{where}[{i}]")
    else:
        assert a == b, f"{message} (at {where}: {a!r} and {b!r})"


def _close(a: Any, b: Any) -> bool:
    """Equal up to the rounding of sums that are taken in another order."""
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-4 * max(1.0, abs(a), abs(b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_close, a, b))
    return a == b
