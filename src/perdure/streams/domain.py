"""The same classes in one domain after another: photos, then paintings, then sketches.

Knows a list of data sets with the same classes. Does not know images or methods. All classes are candidates
from the first task on (domain-incremental). Labels are those of the first domain; the others are matched by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from perdure.errors import DataError, RecipeError
from perdure.settings.config import Named
from perdure.settings.suggestions import nearest
from perdure.streams import selection
from perdure.types import Dataset, Stream, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a domain-incremental stream."""

    domains: Annotated[tuple[Annotated[Named, "data"], ...], Field(min_length=1)]
    """Data sets of kind `classify` with the same classes, in the order of the tasks."""
    names: tuple[str, ...] = ()
    """A name for each domain; empty: style or folder of the data set, or its name."""
    clean_names: bool = False
    """Write spaces for the underscores of class names."""
    train_per_class: Annotated[int, Field(ge=0)] | None = None
    """Only the first so many training images of each class and domain; 0: none, for zero-shot methods."""
    test_per_class: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many test (and validation) images of each class and domain."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each class's training images held out for validation; 0: the data sets' own validation images."""
    task_revealed: bool = False
    """True: tests name the domain."""

    def faults(self):
        if self.names and len(self.names) != len(self.domains):
            yield "names", f"{len(self.names)} names for {len(self.domains)} domains"
        if len(set(self.names)) != len(self.names):
            yield "names", "the same name twice"


def build(config: Config) -> Stream:
    """One task a domain.

    Raises:
        RecipeError: a data set is not of kind `classify`.
        DataError: domains differ in their classes, or a class of a domain has no training image.
    """
    datasets = [named.build() for named in config.domains]
    plan = {
        "stream": "domain",
        "source": [named.plain() for named in config.domains],
        "names": list(config.names) or _names(datasets),
        **{name: getattr(config, name) for name in RULES},
    }
    return assemble(datasets, plan)


RULES = ("clean_names", "train_per_class", "test_per_class", "validation_share", "task_revealed")
"""Settings that a manifest repeats as they are."""


def assemble(datasets: Sequence[Dataset], plan: Mapping[str, Any]) -> Stream:
    """The stream that a plan (or a manifest, which is a plan and what came of it) describes."""
    classes = datasets[0].candidates
    rules = selection.Rules(**{name: plan[name] for name in selection.Rules.__dataclass_fields__})
    shown = tuple(name.replace("_", " ") for name in classes) if plan["clean_names"] else classes
    tasks = tuple(
        _task(index, name, dataset, _labels(dataset, classes, name), shown, rules)
        for index, (name, dataset) in enumerate(zip(plan["names"], datasets, strict=True))
    )
    return Stream(
        name=f"domains of {len(classes)} classes: {', '.join(plan['names'])}",
        tasks=tasks,
        task_revealed=plan["task_revealed"],
        manifest={
            **plan,
            "data": [selection.identity(dataset) for dataset in datasets],
            "tasks": [{"name": task.name, **task.facts["examples"]} for task in tasks],
        },
    )


def _task(
    index: int, name: str, dataset: Dataset, labels: list[int], candidates: tuple[str, ...], rules: selection.Rules
) -> Task:
    parts, written = rules.cut(dataset, labels.__getitem__)
    where = f"domain {name}"
    selection.require_training_images(
        parts["train"].targets,
        dict(enumerate(candidates)),
        where=where,
        data=dataset.name,
        limit=rules.train_per_class,
    )
    if not len(parts["test"]):
        raise DataError("no test images", where=f"{dataset.name}, {where}", todo="Set the data set's `test_share`.")
    facts = {"domain": name, "examples": written}
    return Task(index=index, name=name, kind="classify", candidates=candidates, facts=facts, **parts)


def _labels(dataset: Dataset, classes: tuple[str, ...], name: str) -> list[int]:
    """For each label of `dataset` that of the first domain."""
    if dataset.kind != "classify":
        raise RecipeError(f"{dataset.name} is of kind {dataset.kind}", where="stream.domains", expected="kind classify")
    if dataset.candidates == classes:
        return list(range(len(classes)))
    missing = [c for c in classes if c not in dataset.candidates]
    surplus = [c for c in dataset.candidates if c not in classes]
    twice = [c for c, n in Counter(classes).items() if n > 1]
    if missing or surplus or twice:
        near = nearest(missing[0], surplus) if missing and surplus else None
        parts = [f"lacks {', '.join(missing[:5])}"] if missing else []
        parts += [f"brings {', '.join(surplus[:5])}"] if surplus else []
        parts += [f"has the name {twice[0]} twice, in another order"] if twice and not parts else []
        raise DataError(
            f"differs in its classes from the first domain: it {' and '.join(parts)}",
            where=f"domain {name}",
            expected=f"the same {len(classes)} classes",
            todo=f"Is {near!r} meant to be {missing[0]!r}?" if near else "",
        )
    return [classes.index(c) for c in dataset.candidates]


def _names(datasets: Sequence[Dataset]) -> list[str]:
    """Style, folder or name of each; numbered where that is not unique."""
    raw = [str(d.facts.get("style") or d.called) for d in datasets]
    times = Counter(raw)
    return [name if times[name] == 1 else f"{name}-{index}" for index, name in enumerate(raw)]
