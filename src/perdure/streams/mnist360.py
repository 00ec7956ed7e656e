"""MNIST-360: two digits at a time, turning slowly, without task boundaries (general continual learning).

Buzzega et al., "Dark Experience for General Continual Learning", NeurIPS 2020 (arXiv 2004.07211). Pairs of
consecutive classes come in three rounds; each class turns by 360 degrees over the stream. One task, whose
batches are in ``task.facts["batches"]``; the test asks among all classes, each turning once.

Knows the schedule and the angles, of any data set. Does not know methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import Field

from perdure.errors import DataError
from perdure.settings.config import Named, Seed
from perdure.streams import selection, transformed
from perdure.types import Dataset, Stream, Task

FIRST_ANGLE = 60.0
"""Degrees between the first angles of consecutive classes; class 0 starts one of these below 0."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the MNIST-360 stream."""

    data: Annotated[Named, "data"]
    """A data set of kind `classify`."""
    classes: Annotated[int, Field(ge=2)] = 9
    """The first so many classes. 9, since a turned 6 looks like a 9."""
    rounds: Annotated[int, Field(ge=1)] = 3
    """How often each pair of classes comes; a class is cut into twice as many chunks."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Images of a batch, split between the two classes by what remains of their chunks."""
    official_sampling: bool = False
    """As the official code: each image is drawn from its whole chunk, with replacement, so that about a third
    of the images never come. By default each comes at most once."""
    seed: Seed = 0
    """Of the order within chunks; independent of the run's seed."""
    train_per_class: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many training images of each class."""
    test_per_class: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many test (and validation) images of each class."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each class's training images held out for validation; 0: the data set's own validation images. Test on
    them with ``evaluate.split=validation``."""


class Step(NamedTuple):
    """One batch: `n0` images of class `first`, then `n1` of class `second`."""

    round: int
    first: int
    second: int
    remaining0: int
    """Images left in the first class's chunk before the step."""
    remaining1: int
    n0: int
    n1: int


class Pick(Protocol):
    """Which images of a chunk (or class) of `size` images come next: `n` indices. `begins`: a new chunk."""

    def __call__(self, label: int, size: int, n: int, begins: bool) -> Sequence[int]: ...


def build(config: Config) -> Stream:
    """One task in the stream's own order.

    Raises:
        DataError: the data set has fewer classes than wanted, or a class without images.
    """
    return assemble(config.data.build(), config)


def assemble(dataset: Dataset, config: Config) -> Stream:
    """The stream over a data set that is already read."""
    transformed.require_classes(dataset)
    if len(dataset.candidates) < config.classes:
        raise DataError(f"{len(dataset.candidates)} classes", where=dataset.name, expected=f"at least {config.classes}")
    rules = selection.rules_of(config)
    of_class = {
        split: [[p for p in chosen if rules.source(dataset, split).targets[p] == c] for c in range(config.classes)]
        for split, chosen in rules.splits(dataset).items()
    }
    for split in ("train", "test"):
        if missing := [dataset.candidates[c] for c, own in enumerate(of_class[split]) if not own]:
            raise DataError(f"no {split} image of class {missing[0]}", where=dataset.name)
    plan = schedule([len(own) for own in of_class["train"]], config.batch_size, rounds=config.rounds)
    turns = {
        "train": train_order(plan, of_class["train"], config),
        "validation": test_order(of_class["validation"], config),
        "test": test_order(of_class["test"], config),
    }
    parts: dict[str, Any] = {
        split: _turned(rules.source(dataset, split), *turn, split) for split, turn in turns.items()
    }
    task = Task(
        index=0,
        name="turning",
        kind="classify",
        candidates=dataset.candidates[: config.classes],
        facts={"batches": [step.n0 + step.n1 for step in plan]},
        **parts,
    )
    manifest = {
        "stream": "mnist360",
        **selection.settings_of(config),
        "data": selection.identity(dataset),
        "examples": {split: selection.record(turn[0], parts[split].targets) for split, turn in turns.items()},
    }
    return Stream(name=f"{dataset.name}-360", tasks=(task,), manifest=manifest)


def chunk_sizes(count: int, chunks: int) -> list[int]:
    """`count` images in stored order cut into chunks of ``count // chunks + 1``, the last ones shorter."""
    size = count // chunks + 1
    return [max(0, min(size, count - k * size)) for k in range(chunks)]


def schedule(counts: Sequence[int], batch_size: int, *, rounds: int = 3) -> list[Step]:
    """All batches. Chunks of a class are used up from its last to its first, one in each pair it is part of.

    With r0 and r1 images left, a batch of B takes ``n0 = round(B r0 / (r0 + r1))`` (half to even) of the first
    class and the rest of the second. A pair ends with the shorter chunk; what is left of the other is dropped.
    """
    classes = len(counts)
    waiting = [chunk_sizes(count, 2 * rounds) for count in counts]
    steps = []
    for turn in range(rounds):
        for first, second in pairwise([*range(classes), 0]):
            left0, left1 = waiting[first].pop(), waiting[second].pop()
            while left0 and left1:
                n0 = min(round(batch_size * left0 / (left0 + left1)), left0)
                n1 = min(batch_size - n0, left1)
                steps.append(Step(turn, first, second, left0, left1, n0, n1))
                left0, left1 = left0 - n0, left1 - n1
    return steps


def train_order(
    plan: Sequence[Step], positions: Sequence[Sequence[int]], config: Config, pick: Pick | None = None
) -> tuple[list[int], list[float]]:
    """Position in the data set and angle in degrees of each training image, in the order of the stream."""
    chosen, of_label = picks(plan, [len(own) for own in positions], config, pick)
    turned = [0] * len(positions)
    order, angles = [], []
    for index, label in zip(chosen, of_label):
        order.append(positions[label][index])
        angles.append(train_angle(label, turned[label], len(positions[label])))
        turned[label] += 1
    return order, angles


def picks(
    plan: Sequence[Step], counts: Sequence[int], config: Config, pick: Pick | None = None
) -> tuple[list[int], list[int]]:
    """Index within its class, and class, of each training image."""
    pick = pick or _Shuffled((config.seed, 0), replacement=config.official_sampling)
    numbers = _chunk_numbers(len(counts), config.rounds)
    chosen, labels = [], []
    before = None
    for step in plan:
        begins = before != step[:3]
        before = step[:3]
        pair = zip((step.first, step.second), numbers[step.round, step.first], (step.n0, step.n1))
        for label, number, n in pair:
            sizes = chunk_sizes(counts[label], 2 * config.rounds)
            start = sum(sizes[:number])
            chosen += [start + int(i) for i in pick(label, sizes[number], n, begins)]
            labels += [label] * n
    return chosen, labels


def _chunk_numbers(classes: int, rounds: int) -> dict[tuple[int, int], tuple[int, int]]:
    """Which chunk of its two classes each pair of a round uses; empty chunks are used up like others."""
    left = [2 * rounds] * classes
    numbers = {}
    for turn in range(rounds):
        for first, second in pairwise([*range(classes), 0]):
            left[first] -= 1
            left[second] -= 1
            numbers[turn, first] = (left[first], left[second])
    return numbers


def test_order(
    positions: Sequence[Sequence[int]], config: Config, pick: Pick | None = None
) -> tuple[list[int], list[float]]:
    """Position and angle of each test image: class after class, each class turning once from angle 0.

    Official sampling renders batches from a fresh shuffle of the class each; the last one is cut, and what is
    cut off has turned the class, too.
    """
    order, angles = [], []
    official = config.official_sampling
    pick = pick or _Shuffled((config.seed, 1), replacement=False, afresh=official)
    for label, own in enumerate(positions):
        size = config.batch_size if official else max(1, len(own))
        rendered = 0
        for start in range(0, len(own), size):
            n = min(size, len(own) - start)
            drawn = pick(label, len(own), min(size, len(own)), True) if official else range(n)
            for place, index in enumerate(list(drawn)[:n]):
                order.append(own[int(index)])
                angles.append((rendered + place) * 360 / len(own))
            rendered += len(drawn)
    return order, angles


def train_angle(label: int, number: int, count: int) -> float:
    """Degrees counter-clockwise of a class's image number `number`, of `count`: a full turn over the stream."""
    return ((label - 1) * FIRST_ANGLE + number * 360 / count) % 360


class _Shuffled:
    """Picks by numpy generators keyed by (seed, split, label, call)."""

    def __init__(self, key: tuple[int, int], *, replacement: bool, afresh: bool = False) -> None:
        self.key, self.replacement, self.afresh = key, replacement, afresh
        self.calls = 0
        self.rest: dict[int, list[int]] = {}

    def __call__(self, label: int, size: int, n: int, begins: bool) -> Sequence[int]:
        import numpy as np

        self.calls += 1
        if self.replacement:
            return np.random.default_rng([*self.key, label, self.calls]).integers(0, size, n).tolist()
        if begins or self.afresh:
            self.rest[label] = np.random.default_rng([*self.key, label, self.calls]).permutation(size).tolist()
        taken, self.rest[label] = self.rest[label][:n], self.rest[label][n:]
        return taken


def _turned(base, order: list[int], angles: list[float], split: str):
    return transformed.changed(base, order, _Angles(angles), prefix=split)


@dataclass(frozen=True, eq=False)
class _Angles:
    angles: list[float]

    def __call__(self, index: int) -> transformed.Rotate:
        return transformed.Rotate(self.angles[index])
