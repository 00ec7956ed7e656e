"""New classes come task by task: the classes of one data set, in a class order, cut into consecutive tasks.

Knows class orders and cuts. Does not know images or methods.
A class's new label is its place in the order: with [2, 0, 1] the original class 2 becomes 0, 0 becomes 1,
1 becomes 2, and names follow. Test images keep the order of the data set.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from perdure.errors import DataError, RecipeError
from perdure.files.text_files import read_json
from perdure.settings.config import Named, Seed
from perdure.settings.suggestions import nearest
from perdure.streams import selection
from perdure.types import Dataset, Stream, Task

PUBLISHED = {
    "cifar100": "cifar100__mgclip_rapf_continualclip",
    "imagenet100": "imagenet100__mgclip_rapf_continualclip",
    "imagenet_r": "imagenet_r__mgclip",
    "cub200": "cub200__rapf",
    "imagenet": "imagenet1000__continualclip",
    "tiny_imagenet": "tinyimagenet__continualclip",
}
"""The shipped class order that is the default of a data set, by its name."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a class-incremental stream."""

    data: Annotated[Named, "data"]
    """A data set of kind `classify`."""
    step: Annotated[int, Field(ge=1)] | None = None
    """Classes that each task after the first brings (the increment)."""
    tasks: tuple[tuple[str | int, ...], ...] = ()
    """Instead of `step`: the classes of each task, by name or label, as in [[cat, dog], [car]]; each class once."""
    uneven: bool = False
    """The last task may bring fewer classes than `step`."""
    first: Annotated[int, Field(ge=1)] | None = None
    """Classes of the first task; null: as many as `step`."""
    order: str = "default"
    """`default`: the data set's published class order if there is one, else numeric. `numeric`. `random`: drawn from
    `order_seed`. The name of a shipped list (`imagenet_r__rapf`, or short `rapf`). A JSON file with labels or names."""
    order_seed: Seed = 0
    """For `order: random`; independent of the run's seed."""
    clean_names: bool = False
    """Write spaces for the underscores of class names. Published CLIP numbers keep the underscores."""
    train_per_class: Annotated[int, Field(ge=0)] | None = None
    """Only the first so many training images of each class, for a quick look; 0: none, for zero-shot methods."""
    test_per_class: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many test (and validation) images of each class."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each class's training images held out for validation; 0: the data set's own validation images."""
    scope: Literal["seen", "all"] = "seen"
    """Among which classes a test asks: those seen so far, or all of the stream."""
    task_revealed: bool = False
    """True: tests name the task and offer its classes alone (task-incremental)."""

    def faults(self):
        if self.step is None and not self.tasks:
            yield "step", "is missing: how many classes a task brings, or `tasks` with their names"
        if self.tasks and (self.step is not None or self.first is not None or self.order != "default" or self.uneven):
            yield (
                "tasks",
                "says which classes come when, and cannot stand beside step, first, order or uneven (set step: null)",
            )
        if any(not task for task in self.tasks):
            yield "tasks", "a task without a class"


def build(config: Config) -> Stream:
    """The stream of a data set read as `config.data` says.

    Raises:
        RecipeError: the order is no permutation of the classes, or the cuts do not come out even.
        DataError: the data cannot be read, or a class of a task has no training image.
    """
    dataset = config.data.build()
    if dataset.kind != "classify":
        raise RecipeError(
            f"{dataset.name} is a data set of kind {dataset.kind}", where="stream.data", expected="kind classify"
        )
    order, bounds = _division(config, dataset)
    plan = {
        "stream": "class_incremental",
        "source": config.data.plain(),
        "order": order,
        "cuts": bounds,
        **{name: getattr(config, name) for name in RULES},
    }
    return assemble(dataset, plan)


RULES = ("clean_names", "train_per_class", "test_per_class", "validation_share", "scope", "task_revealed")
"""Settings that a manifest repeats as they are."""


def assemble(dataset: Dataset, plan: Mapping[str, Any]) -> Stream:
    """The stream that a plan (or a manifest, which is a plan and what came of it) describes."""
    order, bounds = list(plan["order"]), list(plan["cuts"])
    rules = selection.Rules(**{name: plan[name] for name in selection.Rules.__dataclass_fields__})
    names = [dataset.candidates[label] for label in order]
    if plan["clean_names"]:
        names = [name.replace("_", " ") for name in names]
    tasks = tuple(_tasks(dataset, order, bounds, names, rules))
    _require_tests(tasks, dataset)
    return Stream(
        name="-".join([dataset.name, *(str(stop - start) for start, stop in pairwise(bounds[:3]))]),
        tasks=tasks,
        task_revealed=plan["task_revealed"],
        scope=plan["scope"],
        manifest={
            **plan,
            "order": order,
            "cuts": bounds,
            "data": selection.identity(dataset),
            "tasks": [{"name": task.name, **task.facts["examples"]} for task in tasks],
        },
    )


def _division(config: Config, dataset: Dataset) -> tuple[list[int], list[int]]:
    """Class order and bounds of the tasks."""
    if config.tasks:
        listed = [item for task in config.tasks for item in task]
        bounds = [0, *accumulate(len(task) for task in config.tasks)]
        return _permutation(listed, dataset, where="stream.tasks"), bounds
    assert config.step is not None
    count = len(dataset.candidates)
    bounds = cuts(count, first=config.first, step=config.step, uneven=config.uneven)
    return class_order(config.order, dataset, seed=config.order_seed), bounds


def cuts(classes: int, *, first: int | None, step: int, uneven: bool = False) -> list[int]:
    """Bounds of the tasks: ``cuts(100, first=50, step=10) == [0, 50, 60, 70, 80, 90, 100]``.

    Without `first` the first task is as large as the others. With `uneven` the last one has what is left:
    ``cuts(11, first=None, step=5, uneven=True) == [0, 5, 10, 11]``.
    """
    if first is not None and first > classes:
        raise RecipeError(
            f"the first task takes {first} classes, the data set has {classes}",
            where="stream.first",
            expected=f"at most {classes}",
        )
    rest = classes - (first or 0)
    if rest % step and not uneven:
        fitting = [s for s in range(1, rest + 1) if rest % s == 0]
        close = sorted(sorted(fitting, key=lambda s: abs(s - step))[:6])
        left = f"minus {first} of the first task leave {rest}, which is" if first else "are"
        raise RecipeError(
            f"{classes} classes {left} no multiple of {step}",
            where="stream.step",
            todo=f"Steps that fit, near {step}: {', '.join(map(str, close))}. Or set stream.uneven=true.",
        )
    first = first or step
    bounds = [0, *range(first, classes + 1, step)]
    return bounds if bounds[-1] == classes else [*bounds, classes]


def class_order(order: str, dataset: Dataset, *, seed: int = 0) -> list[int]:
    """Original labels in the order of the stream; see `Config.order`."""
    count = len(dataset.candidates)
    if order == "default":
        published = _lists().get(PUBLISHED.get(dataset.name, ""), [])
        return list(published) if len(published) == count else list(range(count))
    if order == "numeric":
        return list(range(count))
    if order == "random":
        # By a digest rather than a generator: the same with every version of every library.
        return sorted(range(count), key=lambda label: hashlib.sha256(f"{seed}/{label}".encode()).digest())
    where, listed = _listed(order, dataset)
    return _permutation(listed, dataset, where=where)


def _lists() -> dict[str, list[int]]:
    from perdure.data import lists

    return lists.load("class_orders.json")


def _listed(order: str, dataset: Dataset) -> tuple[str, Any]:
    """(where, content) of a shipped list or a JSON file."""
    shipped = _lists()
    prefix = PUBLISHED.get(dataset.name, dataset.name).split("__")[0]
    for key in (order, f"{prefix}__{order}"):
        if key in shipped:
            return f"class order {key}", shipped[key]
    path = Path(order).expanduser()
    if path.suffix != ".json":
        short = [key.removeprefix(f"{prefix}__") for key in shipped if key.startswith(f"{prefix}__")]
        options = ["default", "numeric", "random", *short, *shipped]
        near = nearest(order, options)
        raise RecipeError(
            f"no class order is called {order!r}",
            where="stream.order",
            expected=f"default, numeric, random, {', '.join(short or shipped)}, or a .json file",
            todo=f"Did you mean `{near}`?" if near else "",
        )
    return str(path), read_json(path, error=RecipeError, todo="Name a JSON file with a list of labels or class names.")


def _permutation(listed: Any, dataset: Dataset, *, where: str) -> list[int]:
    """The labels of a list of labels or names, each class exactly once."""
    names, count = dataset.candidates, len(dataset.candidates)
    if not isinstance(listed, list):
        raise RecipeError(f"holds a {type(listed).__name__}", where=where, expected="a list of labels or class names")
    times = Counter(names)
    order: list[int] = []
    for place, item in enumerate(listed):
        if isinstance(item, str) and times[item] == 1:
            order.append(names.index(item))
        elif isinstance(item, int) and not isinstance(item, bool) and str(item) in times and item != _at(item, names):
            raise _two_readings(item, place, dataset, where=where)
        elif isinstance(item, int) and not isinstance(item, bool) and 0 <= item < count:
            order.append(item)
        else:
            near = nearest(item, names) if isinstance(item, str) and item not in times else None
            several = ", a name of several classes" if isinstance(item, str) and item in times else ""
            raise RecipeError(
                f"entry {place} is {item!r}{several}",
                where=where,
                expected=f"a label from 0 to {count - 1}, or the name of one class of {dataset.name}",
                todo=f"Did you mean {near!r}?" if near else "",
            )
    again = [f"{label} ({names[label]})" for label, n in Counter(order).items() if n > 1]
    missing = [f"{label} ({names[label]})" for label in sorted(set(range(count)) - set(order))]
    if again or missing:
        parts = [f"{len(again)} classes occur twice: {', '.join(again[:5])}"] if again else []
        parts += [f"{len(missing)} of {count} classes are missing: {', '.join(missing[:5])}"] if missing else []
        raise RecipeError("; ".join(parts), where=where, expected=f"each of {count} classes once")
    return order


def _at(number: int, names: Sequence[str]) -> int:
    """The label of the class that is called by a number."""
    return names.index(str(number))


def _two_readings(number: int, place: int, dataset: Dataset, *, where: str) -> RecipeError:
    """A label, and the name of a class that has another: what was meant cannot be known."""
    names, label = dataset.candidates, _at(number, dataset.candidates)
    as_label = f"label {number}, which is the class '{names[number]}'" if 0 <= number < len(names) else "no label"
    return RecipeError(
        f"entry {place} is {number}: {as_label}, or the name of the class '{number}', whose label is {label}",
        where=where,
        expected=f"names in quotes, where classes of {dataset.name} are called by numbers",
        todo=f'Write "{number}" for the class of that name'
        + (f', or "{names[number]}" for the class with label {number}.' if 0 <= number < len(names) else "."),
    )


def _tasks(
    dataset: Dataset, order: Sequence[int], bounds: Sequence[int], names: Sequence[str], rules: selection.Rules
) -> Iterator[Task]:
    new_label = {label: place for place, label in enumerate(order)}
    task_of = {label: t for t, (start, stop) in enumerate(pairwise(bounds)) for label in order[start:stop]}
    splits = {
        split: selection.by_task(positions, rules.source(dataset, split).targets, task_of)
        for split, positions in rules.splits(dataset).items()
    }
    for index, (start, stop) in enumerate(pairwise(bounds)):
        classes = order[start:stop]
        parts, written = {}, {}
        for split, tasks in splits.items():
            mine = tasks[index]
            parts[split] = rules.source(dataset, split).select(mine).relabel(new_label.__getitem__)
            written[split] = selection.record(mine, parts[split].targets)
        name = f"classes {start}-{stop - 1}" if stop - start > 1 else f"class {start}"
        selection.require_training_images(
            parts["train"].targets,
            dict(enumerate(names[start:stop], start)),
            where=f"task {index + 1} ({name})",
            data=dataset.name,
            limit=rules.train_per_class,
        )
        yield Task(
            index=index,
            name=name,
            kind="classify",
            candidates=tuple(names[start:stop]),
            offset=start,
            facts={"classes": list(classes), "examples": written},
            **parts,
        )


def _require_tests(tasks: Sequence[Task], dataset: Dataset) -> None:
    """A task without a test image could not be scored; a single class without one can go unnoticed in it."""
    for task in tasks:
        if not len(task.test):
            raise DataError(
                f"no test image of any class of this task ({', '.join(task.candidates[:5])} ...)",
                where=f"{dataset.name}, task {task.index + 1}",
                todo="Complete the data, or choose another order or step.",
            )
