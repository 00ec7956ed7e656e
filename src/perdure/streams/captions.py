"""Images to describe: one data set to learn from, then others to be tested on.

Knows data sets of kind `caption`. Does not know images, words or methods. The first task has the training images, if
there are any; the others only test, as captions out of domain do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from perdure.errors import DataError, RecipeError
from perdure.settings.config import Named
from perdure.streams import selection
from perdure.types import NO_EXAMPLES, Dataset, Stream, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a stream of captioned images."""

    train: Annotated[Named, "data"] | None = None
    """Data set whose training images the first task has; null: nothing is learned."""
    tests: Annotated[tuple[Annotated[Named, "data"], ...], Field(min_length=1)]
    """Data sets whose test images are described, a task each."""
    names: tuple[str, ...] = ()
    """A name for each of `tests`; empty: its own."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("cider", "bleu_4", "rouge_l", "caption_scores")
    """The first is the headline. `meteor` needs Java; `caption_scores` holds it where Java is there."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many test images of each."""

    def faults(self):
        if self.names and len(self.names) != len(self.tests):
            yield "names", f"{len(self.names)} names for {len(self.tests)} data sets"


def build(config: Config) -> Stream:
    """One task a test set.

    Raises:
        RecipeError: a data set has no captions, or nothing to learn from.
        DataError: a data set has no test image.
    """
    from perdure.metrics import metric

    for name in config.metrics:
        metric(name)
    learned = config.train.build() if config.train is not None else None
    datasets = [named.build() for named in config.tests]
    if learned is not None and not len(learned.train):
        raise DataError("no captions to learn from", where=learned.name)
    names = list(config.names) or [_name(dataset) for dataset in datasets]
    tasks = tuple(
        Task(
            index=i,
            name=name,
            kind="caption",
            train=learned.train if learned is not None and i == 0 else NO_EXAMPLES,
            test=_tested(dataset, config),
            metrics=config.metrics,
        )
        for i, (name, dataset) in enumerate(zip(names, datasets))
    )
    return Stream(
        name=f"captions: {', '.join(names)}",
        tasks=tasks,
        shared_candidates=False,
        manifest={
            "stream": "captions",
            "train": config.train.plain() if config.train is not None else None,
            "source": [named.plain() for named in config.tests],
            "data": [selection.identity(dataset) for dataset in datasets],
            "tasks": [{"name": t.name, "train": len(t.train), "test": len(t.test)} for t in tasks],
        },
    )


def _tested(dataset: Dataset, config: Config):
    if dataset.kind != "caption":
        raise RecipeError(f"{dataset.name} is of kind {dataset.kind}", where="stream.tests", expected="kind caption")
    if not len(dataset.test):
        raise DataError("no test images", where=dataset.name)
    return dataset.test[: config.limit] if config.limit else dataset.test


def _name(dataset: Dataset) -> str:
    style = dataset.facts.get("style")
    return f"{dataset.name} {style}" if style else dataset.name
