"""New classes come group by group, but nobody says when: one task without boundaries.

The classes of a class-incremental stream, its groups one after the other, each shuffled once, as batches in
``task.facts["batches"]``; the test asks among all classes. Knows order and batches. Does not know methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from perdure.errors import RecipeError
from perdure.settings.config import Named, Seed
from perdure.streams import selection, transformed
from perdure.types import Dataset, Stream, Task


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
    seed: Seed = 0
    """Of the order of classes (`random`) and within groups; independent of the run's seed."""
    train_per_class: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many training images of each class."""
    test_per_class: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many test (and validation) images of each class."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each class's training images held out for validation; 0: the data set's own validation images. Test on
    them with ``evaluate.split=validation``."""


def build(config: Config) -> Stream:
    """One task in the stream's own order.

    Raises:
        RecipeError: the groups do not come out even.
        DataError: a class has no training image.
    """
    return assemble(config.data.build(), config)


def assemble(dataset: Dataset, config: Config) -> Stream:
    """The stream over a data set that is already read."""
    import numpy as np

    transformed.require_classes(dataset)
    order = _class_order(len(dataset.candidates), config)
    new_label = {label: place for place, label in enumerate(order)}
    group = {label: place // config.step for label, place in new_label.items()}
    rules = selection.rules_of(config)
    chosen = rules.splits(dataset)
    groups = selection.by_task(chosen["train"], dataset.train.targets, group)
    chosen["train"] = []
    for number, members in enumerate(groups):
        shuffled = np.random.default_rng([config.seed, number]).permutation(len(members))
        chosen["train"] += [members[i] for i in shuffled]
    names = tuple(dataset.candidates[label] for label in order)
    parts: dict[str, Any] = {
        split: rules.source(dataset, split).select(positions).relabel(new_label.__getitem__)
        for split, positions in chosen.items()
    }
    selection.require_training_images(
        parts["train"].targets, dict(enumerate(names)), where="the stream", data=dataset.name, limit=None
    )
    selection.require_test_images(parts["test"].targets, data=dataset.name)
    size, count = config.batch_size, len(chosen["train"])
    batches = [min(size, count - start) for start in range(0, count, size)]
    task = Task(index=0, name="stream", kind="classify", candidates=names, facts={"batches": batches}, **parts)
    manifest = {
        "stream": "general",
        **selection.settings_of(config),
        "data": selection.identity(dataset),
        "order": order,
        "examples": {split: selection.record(own, parts[split].targets) for split, own in chosen.items()},
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
