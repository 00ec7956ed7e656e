"""New classes come group by group, but nobody says when: one task without boundaries.

The classes of a class-incremental stream, its groups one after the other, each shuffled once, as batches in
``task.facts["batches"]``; the test asks among all classes. Knows order and batches. Does not know methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from perdure.config import Named
from perdure.errors import RecipeError
from perdure.streams import selection, transformed
from perdure.types import Stream, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a stream without boundaries."""

    data: Annotated[Named, "data"]
    """A data set of kind `classify`."""
    step: Annotated[int, Field(ge=1)]
    """Classes that come together."""
    order: Literal["numeric", "random"] = "numeric"
    """Order of the classes; `random` is drawn from `seed`."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Images of a batch. A batch may hold the end of a group and the beginning of the next."""
    seed: int = 0
    """Of the order of classes (`random`) and within groups; independent of the run's seed."""
    train_per_class: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many training images of each class."""
    test_per_class: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many test images of each class."""


def build(config: Config) -> Stream:
    """One task in the stream's own order.

    Raises:
        RecipeError: the groups do not come out even.
        DataError: a class has no training image.
    """
    import numpy as np

    dataset = config.data.build()
    transformed.require_classes(dataset)
    order = _class_order(len(dataset.candidates), config)
    new_label = {label: place for place, label in enumerate(order)}
    group = {label: place // config.step for label, place in new_label.items()}
    rules = selection.Rules(train_per_class=config.train_per_class, test_per_class=config.test_per_class)
    chosen = rules.splits(dataset)
    train: list[int] = []
    for number, members in enumerate(selection.by_task(chosen["train"], dataset.train.targets, group)):
        shuffled = np.random.default_rng([config.seed, number]).permutation(len(members))
        train += [members[i] for i in shuffled]
    names = tuple(dataset.candidates[label] for label in order)
    parts = {
        "train": dataset.train.select(train).relabel(new_label.__getitem__),
        "test": dataset.test.select(chosen["test"]).relabel(new_label.__getitem__),
    }
    selection.require_training_images(
        parts["train"].targets, dict(enumerate(names)), where="the stream", data=dataset.name, limit=None
    )
    size = config.batch_size
    batches = [min(size, len(train) - start) for start in range(0, len(train), size)]
    task = Task(index=0, name="stream", kind="classify", candidates=names, facts={"batches": batches}, **parts)
    manifest = {
        "stream": "general",
        "source": config.data.plain(),
        "data": selection.identity(dataset),
        "order": order,
        "step": config.step,
        "batch_size": size,
        "seed": config.seed,
        **{
            split: selection.record(p, parts[split].targets)
            for split, p in (("train", train), ("test", chosen["test"]))
        },
    }
    return Stream(name=f"{dataset.name}-general", tasks=(task,), manifest=manifest)


def _class_order(count: int, config: Config) -> list[int]:
    """Original labels in the order in which they come."""
    import numpy as np

    if count % config.step:
        raise RecipeError(
            f"{count} classes in groups of {config.step}", where="stream.step", expected=f"a divisor of {count}"
        )
    if config.order == "random":
        return np.random.default_rng(config.seed).permutation(count).tolist()
    return list(range(count))
