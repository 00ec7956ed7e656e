"""A data set a task, each with classes of its own: flowers, then cars, then digits.

Two protocols of CLIP's continual learning: MTIL (Zheng et al., ZSCL, ICCV 2023) names the data set at test and asks
among its classes; X-TAIL (Xu et al., RAIL, NeurIPS 2024) asks among the classes of all sets, of those that were not
learned yet, too. With `evaluate.plan: all` the report has Transfer, Average and Last.

Knows a list of data sets. Does not know images or methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field

from perdure.errors import DataError, RecipeError
from perdure.settings import registry
from perdure.settings.config import Named
from perdure.streams import selection
from perdure.types import Dataset, Stream, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a stream of data sets."""

    data: Annotated[tuple[Annotated[Named, "data"], ...], Field(min_length=1)]
    """Data sets of kind `classify`, in the order of the tasks."""
    root: Path | None = None
    """Folder in which the sets lie as they would in `data`, each in its own; null: where each set's `root` says."""
    names: tuple[str, ...] = ()
    """A name for each; empty: its folder or name."""
    phrases: tuple[str, ...] = ()
    """How a class of each set is called in a prompt: `{}, a type of aircraft` for one, `{}` for the bare name; empty:
    the bare names."""
    clean_names: bool = False
    """Write spaces for the underscores of class names."""
    train_per_class: Annotated[int, Field(ge=0)] | None = None
    """Only the first so many training images of each class, 16 for X-TAIL; 0: none, for zero-shot methods."""
    test_per_class: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many test (and validation) images of each class."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each class's training images held out for validation; 0: the data sets' own validation images."""
    task_revealed: bool = True
    """Tests name the data set and ask among its classes (MTIL). False: among those of all sets, from the start
    (X-TAIL)."""

    def faults(self):
        for name, given in (("names", self.names), ("phrases", self.phrases)):
            if given and len(given) != len(self.data):
                yield name, f"{len(given)} {name} for {len(self.data)} data sets"
        if len(set(self.names)) != len(self.names):
            yield "names", "the same name twice"
        for phrase in self.phrases:
            if phrase.count("{}") != 1:
                yield "phrases", f"{phrase!r} needs one {{}} where the class name goes"


def build(config: Config) -> Stream:
    """One task a data set; labels count through all sets.

    Raises:
        RecipeError: a data set is not of kind `classify`, or two have one name.
        DataError: data are not there, of all sets at once; a class has no training image.
    """
    rules, tasks, datasets, offset = selection.rules_of(config), [], [], 0
    placed = [_placed(named, config.root) for named in config.data]
    for index, dataset in enumerate(_read(placed)):
        if dataset.kind != "classify":
            where = f"stream.data.{index}"
            raise RecipeError(f"{dataset.name} is of kind {dataset.kind}", where=where, expected="kind classify")
        name = config.names[index] if config.names else dataset.called
        if name in [task.name for task in tasks]:
            raise RecipeError(f"two data sets are called {name}", where="stream.names", todo="Name each of them.")
        phrase = config.phrases[index] if config.phrases else "{}"
        tasks.append(_task(dataset, index, name, phrase, offset, config.clean_names, rules))
        datasets.append(dataset)
        offset += len(dataset.candidates)
    stated = {name: getattr(config, name) for name in ("phrases", "clean_names", "task_revealed", *RULES)}
    return Stream(
        name=f"{len(tasks)} data sets of {offset} classes",
        tasks=tuple(tasks),
        task_revealed=config.task_revealed,
        scope="seen" if config.task_revealed else "all",
        manifest={
            "stream": "multi_domain",
            "source": [named.plain() for named in placed],
            **stated,
            "data": [selection.identity(dataset) for dataset in datasets],
            "tasks": [{"name": task.name, **task.facts["examples"]} for task in tasks],
        },
    )


def _read(placed: Sequence[Named]) -> list[Dataset]:
    """The data sets; a DataError names all that cannot be read."""
    read, wrong = [], []
    for named in placed:
        try:
            read.append(named.build())
        except DataError as fault:
            wrong.append(fault)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        said = "\n".join(f"- {fault}" for fault in wrong)
        raise DataError(
            f"{len(wrong)} of {len(placed)} data sets cannot be read",
            todo="Put them below one folder, each as it would lie in `data`, and set `stream.root` to that folder; or "
            f"state each set's own: stream.data=[{{name: aircraft, root: ...}}, ...].\n{said}",
        )
    return read


def _placed(named: Named, root: Path | None) -> Named:
    """A data set whose place is not stated, where `root` stands for the folder `data`."""
    if root is None or "root" in named.settings:
        return named
    fields = dataclasses.fields(cast(Any, registry.settings("data", named.name)))
    usual = next((field.default for field in fields if field.name == "root"), None)
    if not isinstance(usual, Path) or usual.parts[:1] != ("data",):
        return named
    return dataclasses.replace(named, settings=named.settings | {"root": str(root / usual.relative_to("data"))})


RULES = ("train_per_class", "test_per_class", "validation_share")
"""Settings that thin out each set."""


def _task(
    dataset: Dataset, index: int, name: str, phrase: str, offset: int, clean: bool, rules: selection.Rules
) -> Task:
    parts, written = rules.cut(dataset, lambda label: label + offset)
    called = tuple(phrase.format(c.replace("_", " ") if clean else c) for c in dataset.candidates)
    labels: Mapping[int, str] = dict(enumerate(called, offset))
    limit = rules.train_per_class
    selection.require_training_images(parts["train"].targets, labels, where=name, data=dataset.name, limit=limit)
    selection.require_test_images(parts["test"].targets, data=dataset.name)
    facts: dict[str, Any] = {"domain": name, "examples": written}
    return Task(index=index, name=name, kind="classify", candidates=called, offset=offset, facts=facts, **parts)
