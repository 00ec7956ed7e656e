"""Shifted test sets, one after another, and nothing to train on: for test-time adaptation.

Knows short names of test sets, data sets of any kind of image, class subsets and order. Does not know images or
methods. Every set asks among its own classes. Corruptions come one after another, each a test set, or `mixed` into one;
whether a method begins anew with each is the method's setting (`continual`).

| short name | set |
|---|---|
| I, A, V, R, K | ImageNet's validation images, ImageNet-A, -V2, -R, -Sketch |
| C | ImageNet-C: every corruption at every severity, a task each |
| CIFAR10C, CIFAR100C | CIFAR-10-C, CIFAR-100-C, the same |
| DTD, Flower102, Food101, Cars, SUN397, Aircraft, Pets, Caltech101, UCF101, eurosat | ten fine-grained sets |
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from perdure.data.imagenet_shifted import CORRUPTIONS, Corruption
from perdure.errors import DataError, RecipeError
from perdure.settings.config import Named, Seed
from perdure.settings.suggestions import nearest
from perdure.streams import arrival, selection
from perdure.types import Dataset, Stream, Task

IMAGENET = {"A": "a", "V": "v2", "R": "r", "K": "sketch"}
FINE_GRAINED = {
    "DTD": "dtd",
    "Flower102": "flower102",
    "Food101": "food101",
    "Cars": "cars",
    "SUN397": "sun397",
    "Pets": "pets",
    "Caltech101": "caltech101",
    "UCF101": "ucf101",
    "eurosat": "eurosat",
}
CIFAR = {"CIFAR10C": "cifar10", "CIFAR100C": "cifar100"}
SHORT = ("I", *IMAGENET, "C", *CIFAR, *FINE_GRAINED, "Aircraft")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a stream of shifted test sets."""

    sets: str = ""
    """Short names with slashes between them: `A/V/R/K`."""
    root: Path = Path("data")
    """Folder that holds the sets of `sets` (ImageNet, imagenet-a, oxford_flowers ...)."""
    data: tuple[Annotated[Named, "data"], ...] = ()
    """Further test sets: data sets of kind `classify`, an image folder for one."""
    names: tuple[str, ...] = ()
    """A name for each of `data`; empty: its style, folder or name."""
    corruptions: Annotated[tuple[Corruption, ...], Field(min_length=1)] = CORRUPTIONS
    """Kinds of corruption of C and CIFAR-C, in this order."""
    cotta_order: Annotated[int, Field(ge=0, le=9)] | None = None
    """The order of the 15 corruptions in one of CoTTA's ten runs instead."""
    severities: Annotated[tuple[Literal[1, 2, 3, 4, 5], ...], Field(min_length=1)] = (1, 2, 3, 4, 5)
    """Severities of C and CIFAR-C."""
    gradual: bool = False
    """Severities 5 4 3 2 1 of the first corruption and 1 2 3 4 5 4 3 2 1 of each other, as in CoTTA's gradual run, in
    place of `severities`."""
    mixed: bool = False
    """All sets as one, in a mixed order; they must have the same classes."""
    imbalance: Annotated[float, Field(ge=1)] | None = None
    """Label shift: class after class, 100 images are drawn, with replacement, in which it is so many times as frequent
    as any other (SAR: 1 to 500000). `evaluate.order: dirichlet` is label shift without replacement."""
    classes: tuple[str, ...] = ()
    """Only these classes of each set, by name, in this order; empty: all."""
    open_set: bool = False
    """Keep the images of the classes that `classes` leaves out: they have no right answer, and `auroc_unknown` says how
    well they are told apart."""
    clean: Annotated[Named, "data"] | None = None
    """A data set whose training images the first task brings: clean images, of which EATA makes its anchor."""
    subset: Literal["none", "imagenet_a", "imagenet_r"] = "none"
    """Only the 200 classes of ImageNet-A or -R, where a set has all 1000 classes of ImageNet."""
    test_per_class: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many images of each class."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only so many images of a set, after shuffling."""
    shuffle: bool = True
    """Mix the classes, in an order that `order_seed` decides; matters to methods that carry state."""
    order_seed: Seed = 0
    """Independent of the run's seed."""

    def faults(self):
        chosen = [name for name in self.sets.split("/") if name]
        unknown = [name for name in chosen if name not in SHORT]
        if unknown:
            near = nearest(unknown[0], SHORT)
            hint = f"did you mean {near}?" if near else f"known: {', '.join(SHORT)}"
            yield "sets", f"there is no set {unknown[0]!r}; {hint}"
        if not chosen and not self.data:
            yield "sets", "no test set: name some here, or under `data`"
        if self.names and len(self.names) != len(self.data):
            yield "names", f"{len(self.names)} names for {len(self.data)} data sets"
        if self.cotta_order is not None and self.corruptions != CORRUPTIONS:
            yield "cotta_order", "it orders all 15 corruptions; drop `corruptions`"
        if self.open_set and not self.classes:
            yield "open_set", "state the known classes in `classes`"
        if self.imbalance is not None and not self.shuffle:
            yield "shuffle", "imbalanced draws have an order of their own"
        if self.classes and self.subset != "none":
            yield "subset", "class names are given already; drop one of the two"


def build(config: Config) -> Stream:
    """One task a test set.

    Raises:
        RecipeError: a data set is not of kind `classify`, or lacks a class that is asked for.
        DataError: a set cannot be read, or has no test image.
    """
    datasets = [(name, named.build()) for name, named in _named(config)]
    names = _unique([name or _own_name(dataset) for name, dataset in datasets])
    tasks = tuple(_task(i, name, dataset, config) for i, (name, (_, dataset)) in enumerate(zip(names, datasets)))
    tasks = _with_clean(_mixed(tasks, config) if config.mixed else tasks, config)
    return Stream(
        name=f"shifted tests: {', '.join(names)}",
        tasks=tasks,
        shared_candidates=False,
        manifest={
            "stream": "shifted_tests",
            "source": [named.plain() for _, named in _named(config)],
            "order_seed": config.order_seed if config.shuffle else None,
            "data": {name: selection.identity(dataset) for name, (_, dataset) in zip(names, datasets)},
            "tasks": [{"name": task.name, **task.facts["examples"]} for task in tasks],
        },
    )


def _named(config: Config) -> Iterator[tuple[str, Named]]:
    """The test sets in order, each with its name if it has one."""
    root = config.root

    def at(name: str, **settings: Any) -> Named:
        return Named(place="data", name=name, settings={k: str(v) if k == "root" else v for k, v in settings.items()})

    for short in [name for name in config.sets.split("/") if name]:
        if short == "I":
            folder = next((root / n for n in ("ImageNet", "imagenet") if (root / n).is_dir()), root / "ImageNet")
            yield short, at("imagenet", root=folder, splits="test")
        elif short in IMAGENET:
            yield short, at("imagenet_shifted", set=IMAGENET[short], root=root)
        elif short == "C":
            for kind, severity in _corruptions(config):
                settings = {"set": "c", "root": root, "corruption": kind, "severity": severity}
                yield f"C {kind} {severity}", at("imagenet_shifted", **settings)
        elif short in CIFAR:
            for kind, severity in _corruptions(config):
                settings = {"set": CIFAR[short], "root": root, "corruption": kind, "severity": severity}
                yield f"{short} {kind} {severity}", at("cifar_c", **settings)
        elif short == "Aircraft":
            yield short, at("aircraft", root=root / "fgvc_aircraft")
        else:
            yield short, at("fine_grained", set=FINE_GRAINED[short], root=root)
    for i, named in enumerate(config.data):
        yield (config.names[i] if config.names else ""), named


def _corruptions(config: Config) -> Iterator[tuple[str, int]]:
    """Kinds and severities, in order."""
    kinds = config.corruptions
    if config.cotta_order is not None:
        kinds = tuple(CORRUPTIONS[n - 1] for n in arrival.COTTA_ORDERS[config.cotta_order])
    first, later = arrival.gradual() if config.gradual else (config.severities, config.severities)
    for i, kind in enumerate(kinds):
        for severity in later if i else first:
            yield kind, severity


def _mixed(tasks: tuple[Task, ...], config: Config) -> tuple[Task, ...]:
    """All test sets as one."""
    first = tasks[0]
    other = next((task for task in tasks if task.candidates != first.candidates), None)
    if other is not None:
        raise RecipeError(f"{first.name} and {other.name} have different classes", where="stream.mixed")
    whole = arrival.joined([task.test for task in tasks], [task.name for task in tasks])
    positions = list(range(len(whole)))
    if config.shuffle:
        random.Random(config.order_seed).shuffle(positions)
    test = whole.select(positions)
    facts = {"examples": {"test": selection.record(positions, whole.targets)}}
    return (replace(first, name="mixed", test=test, facts=facts),)


def _with_clean(tasks: tuple[Task, ...], config: Config) -> tuple[Task, ...]:
    """The first task with the training images of `clean`."""
    if config.clean is None:
        return tasks
    dataset = config.clean.build()
    if not len(dataset.train):
        raise DataError("no training images", where=f"stream.clean: {dataset.name}")
    if dataset.candidates != tasks[0].candidates:
        raise RecipeError(f"{dataset.name} has other classes than {tasks[0].name}", where="stream.clean")
    return (replace(tasks[0], train=dataset.train), *tasks[1:])


def _task(index: int, name: str, dataset: Dataset, config: Config) -> Task:
    if dataset.kind != "classify":
        raise RecipeError(f"{dataset.name} is of kind {dataset.kind}", where="stream.data", expected="kind classify")
    chosen = _labels(dataset, name, config)
    new_label = {old: new for new, old in enumerate(chosen)}
    targets = dataset.test.targets
    chosen_positions = selection.first_of_each(targets, config.test_per_class)
    positions = [p for p in chosen_positions if config.open_set or targets[p] in new_label]
    if config.shuffle:
        random.Random(config.order_seed).shuffle(positions)
    positions = positions[: config.limit]
    if not positions:
        raise DataError(
            "no test images", where=f"{dataset.name}, {name}", todo="Set the data set's `test_share`, or `classes`."
        )
    if config.imbalance is not None:
        drawn = arrival.imbalanced([targets[p] for p in positions], config.imbalance, seed=config.order_seed)
        positions = [positions[i] for i in drawn]
    test = arrival.repeated(dataset.test, positions) if config.imbalance else dataset.test.select(positions)
    test = test.relabel(new_label.get)
    return Task(
        index=index,
        name=name,
        kind="classify",
        candidates=tuple(dataset.candidates[label] for label in chosen),
        test=test,
        metrics=("accuracy", "top5"),
        facts={"examples": {"test": selection.record(positions, test.targets)}},
    )


def _labels(dataset: Dataset, name: str, config: Config) -> list[int]:
    """The labels of `dataset` that are asked for, in the order of the new ones."""
    if config.subset != "none" and len(dataset.candidates) == 1000:
        from perdure.data import imagenet_shifted

        wanted = set(imagenet_shifted.classes(config.subset.removeprefix("imagenet_"))[0])
        folders, _ = imagenet_shifted.classes("v2" if dataset.name == "imagenet_v2" else "sketch")
        wnids, _ = imagenet_shifted.classes("sketch")
        ids = [wnids[int(f)] for f in folders] if dataset.name == "imagenet_v2" else folders
        return [label for label, wnid in enumerate(ids) if wnid in wanted]
    if not config.classes:
        return list(range(len(dataset.candidates)))
    missing = [c for c in config.classes if c not in dataset.candidates]
    if missing:
        near = nearest(missing[0], dataset.candidates)
        raise RecipeError(
            f"{name} has no class {missing[0]!r}",
            where="stream.classes",
            todo=f"Did you mean {near!r}?" if near else "",
        )
    twice = [c for c, n in Counter(config.classes).items() if n > 1]
    if twice:
        raise RecipeError(f"the class {twice[0]!r} is named twice", where="stream.classes")
    return [dataset.candidates.index(c) for c in config.classes]


def _own_name(dataset: Dataset) -> str:
    return str(dataset.facts.get("style") or dataset.called)


def _unique(names: list[str]) -> list[str]:
    """Numbered where a name occurs twice."""
    times = Counter(names)
    return [name if times[name] == 1 else f"{name}-{index}" for index, name in enumerate(names)]
