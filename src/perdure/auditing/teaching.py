"""Whether learning looks ahead: a fresh method learns the first task in little, and what it touches is watched.

Knows what a method is given to learn, and names of classes that are to come. Does not know methods by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from perdure.auditing.answers import ask, moved
from perdure.auditing.finding import FAULTS, Finding, Subject
from perdure.errors import PerdureError
from perdure.evaluate import predicting
from perdure.runtime.devices import seed_torch
from perdure.runtime.placing import place
from perdure.testing.miniature import Miniature, shortened
from perdure.types import Example, Examples, Task

FEW = 16
"""Training examples at least, and test examples at most."""
STEPS = 2


def later_classes(it: Subject) -> Finding:
    """Whether classes that are to come are known before: their names in what is given, their prompts in answers."""
    check = "classes of later tasks are not known before"
    tasks = it.stream.tasks
    done = "names looked for in the settings and in what earlier tasks say; the first task learned in little, asked, "
    done += "asked about all classes, and asked again"
    first, last = it.stream.query(tasks[0], after=0), it.stream.query(tasks[-1], after=len(tasks) - 1)
    if tasks[0].kind != "classify" or len(tasks) < 2:
        return Finding(check, "nothing", "the stream brings no classes task by task", "not applicable")
    if it.stream.scope == "all":
        return Finding(check, "nothing", "every test asks among the classes of all tasks (scope: all)", "by protocol")
    if told := list(_named_early(it)):
        return Finding(check, done, f"named early: {'; '.join(told[:3])}", "leaks")
    if first == last or not tasks[-1].candidates:
        return Finding(check, done, "later tasks bring no classes", "not applicable")
    try:
        method = _taught(it, tasks[0])
        tests = [each for each in _few(tasks[0].test) if each.target is not None]
        before = ask(it, first, tests, batch=4, method=method)
        with predicting(method, it.runtime):
            method.predictor(last)
        differing, largest, compared = moved(it, before, ask(it, first, tests, batch=4, method=method))
    except (PerdureError, *FAULTS) as refused:
        said = f"none is named early; the rest is refused ({type(refused).__name__}): {refused}"
        return Finding(check, done, said[:300], "not applicable")
    seen = f"{differing} of {compared} answers to the first task differ, by up to {largest:.2g}"
    return Finding(check, done, seen, "leaks" if differing else "passes")


def tests_unread(it: Subject) -> Finding:
    """Whether learning reads what it is tested with: a task holds its tests, too."""
    check, done = "learning reads no test example", "the first task learned in little, its tests watched"
    first = it.stream.tasks[0]
    watched = _Watched(first.test)
    try:
        _taught(it, replace(first, test=watched))
    except (PerdureError, *FAULTS) as refused:
        said = f"the method refuses ({type(refused).__name__}): {refused}"
        return Finding(check, done, said[:300], "leaks" if watched.read else "not applicable")
    return Finding(check, done, watched.read or "none was read", "leaks" if watched.read else "passes")


def _taught(it: Subject, task: Task) -> Any:
    """A fresh method that has learned a task with some of its examples, in a step or two of each stage."""
    given = it.runtime
    device = str(given.device) if given.device.type != "cpu" else "cpu"
    runtime = Miniature(seed=given.seed, device=device, precision=given.precision, quiet=True, unreadable="skip")
    runtime.limit, runtime.task = STEPS, task.index
    method = it.make()
    place(method, runtime)
    seed_torch(runtime.key("learn"))
    method.learn(shortened(task, FEW) if len(task.train) else task, runtime)
    return method


def _few(examples: Examples) -> list[Example]:
    count = min(FEW, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def _named_early(it: Subject) -> Iterator[str]:
    """Where names of classes of later tasks stand: in settings of the method, or in facts of tasks before."""
    seen: set[str] = set()
    later: list[set[str]] = []
    for task in reversed(it.stream.tasks):
        later.insert(0, set(seen))
        seen |= set(task.candidates)
    settings = {name: value for name, value in it.settings.items() if name.startswith("method.")}
    first = later[0] - set(it.stream.tasks[0].candidates)
    for name, value in settings.items():
        if found := first & set(_words(value)):
            yield f"setting {name} holds {', '.join(sorted(found)[:3])}"
    for task, to_come in zip(it.stream, later):
        new = to_come - set(task.candidates)
        if found := new & set(_words(json.loads(json.dumps(dict(task.facts), default=str)))):
            yield f"facts of task '{task.name}' hold {', '.join(sorted(found)[:3])}"


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _words(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _words(inner)


class _Watched(Examples):
    """Examples that note that they were read; how many there are may be asked."""

    def __init__(self, examples: Examples) -> None:
        super().__init__(examples._make, examples.targets, indices=examples._indices)
        self.read = ""

    def __getattribute__(self, name: str) -> Any:
        if name in ("targets", "select", "relabel", "prefixed") and "read" in object.__getattribute__(self, "__dict__"):
            self.read = "their targets were read" if name == "targets" else "they were taken"
        return super().__getattribute__(name)

    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)
        self.read = "they were read"
        return item
