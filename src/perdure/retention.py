"""What a model still knows of what its stream does not teach: sets of images that are asked by their classes' names.

Knows such a set as a task after all others, and which methods can be asked. Does not know models, records or gates.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from perdure.errors import RecipeError
from perdure.settings.config import Named
from perdure.settings.registry import Description
from perdure.types import Dataset, Examples, Query, Stream, Task


def require(method: Description, roles: Collection[str], *, where: str) -> None:
    """Raise a RecipeError unless a method answers by the names of classes that it has not learned.

    Args:
        roles: of the models that it is given.
    """
    if "clip" not in roles or method.learned_classes_only:
        because = f": {method.learned_classes_only}" if method.learned_classes_only else ""
        raise RecipeError(
            f"method {method.name} answers only for classes that it has learned{because}",
            where=where,
            expected="a method with CLIP's texts",
        )


def added(stream: Stream, sets: Sequence[Named], *, split: str) -> Stream:
    """The stream with data sets of kind `classify` that are asked beside its tasks, named as in `stream.tasks`.

    Raises:
        RecipeError: a data set of another kind, or two of one name.
    """
    if not sets:
        return stream
    offset = max((task.offset + len(task.candidates) for task in stream if task.kind == "classify"), default=0)
    kept: list[Task] = []
    for i, named in enumerate(sets):
        dataset, where = named.build(), f"evaluate.retention.{i}"
        if dataset.kind != "classify":
            raise RecipeError(f"{named.name} is of kind {dataset.kind}", where=where, expected="kind classify")
        name = dataset.called
        if name in [task.name for task in kept]:
            raise RecipeError(f"two sets are called {name}", where=where, expected="a set named once")
        test = dataset.test if len(dataset.test) else dataset.train
        kept.append(as_task(dataset, test, name=name, index=len(stream) + i, offset=offset, split=split))
    return replace(stream, retention=tuple(kept))


def as_task(dataset: Dataset, test: Examples, *, name: str, index: int, offset: int, split: str) -> Task:
    """A data set as a task whose labels come after all that are known: no row of a class is taken for one of its."""
    parts: dict[str, Any] = {split: test.relabel(lambda label: label + offset) if offset else test}
    return Task(index=index, name=name, kind=dataset.kind, candidates=dataset.candidates, offset=offset, **parts)


def query(task: Task) -> Query:
    """What is asked of it: which of its own classes."""
    return Query(kind=task.kind, candidates=task.candidates, offset=task.offset)
