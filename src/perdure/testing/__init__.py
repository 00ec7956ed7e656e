"""Checks that every method passes, for anyone's method, and tiny streams to run them on.

`check_method` is to a perdure method what scikit-learn's ``check_estimator`` is to an estimator. It knows
the Protocol alone. A method that must break a rule declares so by the check's name in `allow`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from perdure import checkpoint
from perdure.errors import Interrupted, PerdureError
from perdure.evaluate import Evaluation, evaluate
from perdure.loop import seed_everything
from perdure.runtime.placing import modules, off
from perdure.testing.running import (
    Make,
    Stopping,
    Subject,
    assert_equal_state,
    close,
    go,
    parameters,
    quiet,
    records,
    run_fresh,
    run_until_finished,
    weights,
)
from perdure.testing.second_device import second_device
from perdure.testing.streams import tiny_stream
from perdure.types import NO_EXAMPLES, Example, Examples, Method, Stream, Task

__all__ = ["CHECKS", "check_method", "tiny_stream"]


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
    subject = Subject(make, stream or tiny_stream())
    made = []
    for name, check in CHECKS.items():
        if name not in allow:
            try:
                check(subject)
            except (AssertionError, PerdureError) as fault:
                raise AssertionError(f"{name}: {fault}") from fault
            made.append(name)
    return made


# -- checks -------------------------------------------------------------------------------------------------


def _runs_and_scores_every_seen_task(it: Subject) -> None:
    stream, scores = it.stream, it.learned.scores
    expected = {(after, asked) for after in range(len(stream)) for asked in range(after + 1)}
    found = {(row["after"], row["asked"]) for row in scores.rows}
    assert found == expected, f"scores of {sorted(found)} instead of {sorted(expected)}"
    for row in scores.rows:
        task = stream.tasks[row["asked"]]
        assert row["n"] == len(task.test), f"{row['n']} of {len(task.test)} examples of {task.name} were answered"
        assert set(row["values"]) >= set(task.metrics), f"{task.name} was not measured by {task.metrics}"


def _same_seed_same_scores(it: Subject) -> None:
    scores, method = run_fresh(it.make, it.stream)
    assert scores.rows == it.learned.scores.rows, "two runs with one seed gave other scores"
    assert_equal_state(it.learned.state, method.state_dict(), "two runs with one seed ended in other states")


def _resuming_equals_never_stopping(it: Subject) -> None:
    whole = it.learned
    for stop_at, saving in ((1, True), (2, True), (5, True), (1, False), (3, False)):
        how = f"stopped {'and saved' if saving else 'without saving'} after {stop_at} steps"
        with tempfile.TemporaryDirectory() as folder:
            runtimes = (
                # A kill is tried once: killed each time before anything is saved, no run could make progress.
                Stopping(Path(folder), after_steps=stop_at if saving or turn == 0 else None, saving=saving)
                for turn in range(200)
            )
            scores, method = run_until_finished(it.make, it.stream, runtimes)
        assert scores.rows == whole.scores.rows, f"a run {how} gave other scores"
        assert_equal_state(method.state_dict(), whole.state, f"a run {how} ended in another state")


def _growing_task_by_task_equals_the_whole_stream(it: Subject) -> None:
    """Each task in a process of its own, which knows of no later one: what `perdure update` does."""
    whole, tasks = it.learned, it.stream.tasks
    with tempfile.TemporaryDirectory() as folder:
        for known in range(1, len(tasks) + 1):
            scores, method = run_fresh(it.make, replace(it.stream, tasks=tasks[:known]), quiet(Path(folder)))
    assert scores.rows == whole.scores.rows, "one task after another gave other scores: state_dict lacks something"
    assert_equal_state(method.state_dict(), whole.state, "one task after another ended in another state")


def _state_is_tensors_and_json_and_complete(it: Subject) -> None:
    method, stream = it.learned.method, it.stream
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "state.safetensors"
        checkpoint.save(file, it.learned.state)
        seed_everything(1)
        fresh = it.make()
        fresh.load_state_dict(checkpoint.load(file))
    last = len(stream) - 1
    for task in stream:
        ours, theirs = records(method, stream, task, last), records(fresh, stream, task, last)
        assert ours == theirs, "a fresh method with the saved state answers differently: state_dict lacks something"


def _predicting_leaves_the_state_unchanged(it: Subject) -> None:
    method, stream = it.learned.method, it.stream
    if getattr(method, "carries_state", False):
        return
    for task in stream:
        records(method, stream, task, len(stream) - 1)
    assert_equal_state(it.learned.state, method.state_dict(), "predicting changed the state")
    assert_equal_state(it.learned.weights, weights(method), "predicting changed the weights of a model")


def _answers_do_not_depend_on_batch_mates(it: Subject) -> None:
    """Nor on the order of the examples; nor, for any method, on whether the test was stopped and went on."""
    method, stream = it.learned.method, it.stream
    # A step of Adam takes the sign of a gradient that is nearly 0 from its rounding.
    tolerance = 1e-3 if getattr(method, "adapts", False) else 1e-4
    for task in stream:
        ways: list[tuple[str, Task, dict[str, Any]]] = [("a test that was stopped", task, {"stopped": True})]
        if not getattr(method, "carries_state", False):
            turned = replace(task, test=task.test.select(range(len(task.test))[::-1]))
            ways += [*((f"batches of {n}", task, {"batch_size": n}) for n in (2, 5)), ("another order", turned, {})]
        alone = records(method, stream, task, len(stream) - 1, batch_size=1)
        for way, same, how in ways:
            settings: dict[str, Any] = {"batch_size": 1} | how
            found = {r["id"]: r for r in records(method, stream, same, len(stream) - 1, **settings)}
            assert close({r["id"]: r for r in alone}, found, tolerance), (
                f"answers differ between batches of 1 and {way}"
            )


def _candidates_are_encoded_once_per_query(it: Subject) -> None:
    """No layer works on the same input for two examples: that would depend on the query alone."""
    method, stream = it.learned.method, it.stream
    task = stream.tasks[-1]
    query = stream.query(task, after=task.index)
    if getattr(method, "adapts", False) or not query.candidates or len(task.test) < 2:
        return
    with torch.no_grad():
        predict = method.predictor(query)
    seen: list[set[tuple[str, bytes]]] = []
    hooks = [
        module.register_forward_pre_hook(partial(_note, seen, f"{path}.{name}"))
        for path, model in modules(method).items()
        for name, module in model.named_modules()
        if _computes(module)
    ]
    for i in (0, 1):
        seen.append(set())
        alone = replace(task, test=task.test.select([i]))
        evaluate(method, predict, alone, query, Evaluation(batch_size=1), runtime=quiet(None), after=0)
    for hook in hooks:
        hook.remove()
    again = sorted({name for name, _ in seen[0] & seen[1]})
    assert not again, f"worked on the same input for two examples while predicting: {', '.join(again[:3])}"


def _note(seen: list[set[tuple[str, bytes]]], name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    tensors = [t.detach().cpu().contiguous() for t in inputs if isinstance(t, Tensor)]
    if tensors:
        seen[-1].add((name, b"".join(t.flatten().view(torch.uint8).numpy().tobytes() for t in tensors)))


def _computes(module: nn.Module) -> bool:
    """Not a table that is looked up, a dropout or an activation."""
    return not isinstance(module, nn.Embedding) and next(module.parameters(), None) is not None


def _frozen_weights_stay_bitwise_unchanged(it: Subject) -> None:
    after = parameters(it.learned.method)
    changed = [n for n, tensor in it.learned.frozen.items() if n in after and not torch.equal(tensor, after[n])]
    assert not changed, f"frozen parameters changed: {', '.join(changed[:5])}"


def _degenerate_tasks_work_or_say_why(it: Subject) -> None:
    first = it.stream.tasks[0]
    one_class = [i for i, target in enumerate(first.train.targets) if target == first.train.targets[0]]
    cases: dict[str, Task] = {"one example": replace(first, train=first.train.select([0]))}
    if first.candidates:
        alone = replace(first, candidates=first.candidates[:1], train=first.train.select(one_class))
        tests = [i for i, target in enumerate(first.test.targets) if target == first.offset]
        cases["one class"] = replace(alone, test=first.test.select(tests))
    cases["empty train"] = replace(first, train=NO_EXAMPLES)
    for name, task in cases.items():
        try:
            scores, _ = run_fresh(it.make, replace(it.stream, tasks=(task,)))
        except PerdureError as said:
            assert str(said), f"a task with {name} is refused without a reason"
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as fault:
            raise AssertionError(f"a task with {name} ends in {type(fault).__name__}: {fault}") from fault
        else:
            assert len(scores.rows) == 1, f"a task with {name} was not scored"


def _earlier_classes_may_come_again(it: Subject) -> None:
    """Beside new ones, and alone; a method that cannot learn more of them says so (``new_labels_only``)."""
    first, last = it.stream.tasks[0], it.stream.tasks[-1]
    if last.kind != "classify" or not last.offset or hasattr(it.learned.method, "new_labels_only"):
        return
    more = [replace(example, id=f"more/{example.id}") for example in first.train]
    beside = replace(last, train=Examples.of([*last.train, *more[::2]]))
    end, following = last.offset + len(last.candidates), last.index + 1
    alone = replace(first, index=following, name="again", candidates=(), offset=end, train=Examples.of(more[1::2]))
    try:
        run_fresh(it.make, replace(it.stream, tasks=(*it.stream.tasks[:-1], beside, alone)))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as fault:
        raise AssertionError(f"classes that come again end in {type(fault).__name__}: {fault}") from fault


def _learning_reads_no_future_task_and_no_test_example(it: Subject) -> None:
    seed_everything(0)
    method, runtime = it.make(), quiet(None)
    read: set[str] = set()
    original = Examples.__getitem__

    def watched(self: Examples, index: Any) -> Any:
        item = original(self, index)
        read.update([item.id] if isinstance(item, Example) else ())
        return item

    allowed: set[str] = set()
    Examples.__getitem__ = watched  # type: ignore[method-assign]
    try:
        for task in it.stream:
            allowed |= {e.id for part in (task.train, task.validation) for e in part}
            read.clear()
            runtime.task = task.index
            method.learn(task, runtime)
            assert not read - allowed, f"while learning task {task.index} it read {sorted(read - allowed)[:3]}"
    finally:
        Examples.__getitem__ = original  # type: ignore[method-assign]


def _every_tensor_follows_the_device(it: Subject) -> None:
    """On a device that is not the CPU, stopped and resumed from files, with a test before the first task."""
    start = True
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(200):
            seed_everything(0)
            method, runtime = it.make(), Stopping(Path(folder), after_steps=7)
            with second_device() as device, _first_pass(partial(_assert_placed, method, device)):
                runtime.device = device
                try:
                    go(method, it.stream, runtime, start=start)
                    return _assert_placed(method, device)
                except Interrupted:
                    continue
                except PerdureError:
                    if not start:
                        raise
                    start = False  # it has no answer before it has learned
                except (RuntimeError, TypeError) as fault:
                    raise AssertionError(str(fault)) from fault
    raise AssertionError("a run that is stopped and resumed again and again makes no progress")


def _assert_placed(method: Method, device: torch.device) -> None:
    left = off(method, device)
    assert not left, f"not on the run's device: {', '.join(left[:3])}"


@contextmanager
def _first_pass(look: Callable[[], None]) -> Iterator[None]:
    """Look once, before any module's first forward pass."""

    def hook(*_: Any) -> None:
        handle.remove()
        look()

    handle = register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


CHECKS: Mapping[str, Callable[[Subject], None]] = {
    check.__name__.lstrip("_"): check
    for check in (
        _runs_and_scores_every_seen_task,
        _same_seed_same_scores,
        _state_is_tensors_and_json_and_complete,
        _growing_task_by_task_equals_the_whole_stream,
        _resuming_equals_never_stopping,
        _predicting_leaves_the_state_unchanged,
        _answers_do_not_depend_on_batch_mates,
        _candidates_are_encoded_once_per_query,
        _frozen_weights_stay_bitwise_unchanged,
        _degenerate_tasks_work_or_say_why,
        _earlier_classes_may_come_again,
        _learning_reads_no_future_task_and_no_test_example,
        _every_tensor_follows_the_device,
    )
}
"""Every check by name: the sentence that it asserts."""
