"""TDA: two caches of past test features, of sure and of unsure images, vote for and against classes; no gradient.

Karmanov et al., Efficient Test-Time Adaptation of Vision-Language Models, CVPR 2024. Images come one by one; each may
enter a cache and is answered after it has. The defaults are the published setting for ImageNet, one for all test sets.

Needs: 1 GB GPU memory for ViT-B/16.

Knows caches and votes. Features and what views say are in `perdure.families.test_time`.
"""

from __future__ import annotations

from bisect import insort_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from perdure.families.test_time import evidence, frozen, settings
from perdure.families.test_time.evidence import Evidence
from perdure.models.clip import Clip
from perdure.types import Query


@dataclass(frozen=True, kw_only=True)
class Config(settings.Continual, settings.FewViews, settings.Prompted):
    """Settings of TDA."""

    logit_scale: Annotated[float, Field(gt=0)] = 100.0
    """What cosines are multiplied by, whatever the model's own scale is."""
    positive: bool = True
    """Keep the surest images of each class, which vote for it."""
    positive_capacity: Annotated[int, Field(ge=1)] = 3
    """Images a class."""
    positive_alpha: Annotated[float, Field(ge=0)] = 2.0
    """Weight of their votes."""
    positive_beta: Annotated[float, Field(ge=0)] = 5.0
    """Sharpness: how fast a vote falls with the distance of two features."""
    negative: bool = True
    """Keep images of middling entropy, which vote against the classes that they find likely."""
    negative_capacity: Annotated[int, Field(ge=1)] = 2
    """Images a class."""
    negative_alpha: Annotated[float, Field(ge=0)] = 0.117
    """Weight of their votes."""
    negative_beta: Annotated[float, Field(ge=0)] = 1.0
    """Sharpness of their votes."""
    entropy_window: tuple[float, float] = (0.2, 0.5)
    """Entropies between which an image may enter the negative cache, in nats over log2 of the number of classes as
    published: ln 2 is the highest."""
    mask_window: tuple[float, float] = (0.03, 1.0)
    """Probabilities between which a class is voted against."""

    def faults(self):
        yield from settings.views_faults(self)
        for name in ("entropy_window", "mask_window"):
            low, high = getattr(self, name)
            if not low < high:
                yield name, f"expected a lower and a higher bound, found {low:g} and {high:g}"


class Tda(frozen.OnFeatures):
    """Caches fill up over a test set and begin empty with the next."""

    Config = Config
    answers = frozenset({"classify"})
    not_updatable = "it learns nothing from training data"

    def __init__(self, config: Config, *, clip: Clip) -> None:
        super().__init__(config, clip)
        self.kept = evidence.kept_of(config.views, config.selection)

    def begin(self, query: Query, texts: Float[Tensor, "classes dim"]) -> Votes:
        return Votes(self.config, len(texts))

    def answer(self, state: Votes, rows: Mapping[str, Tensor], texts: Tensor) -> Tensor:
        return state.answer(evidence.gather(rows["feature"], texts, scale=self.config.logit_scale, kept=self.kept))


class Votes:
    """Both caches, and the answers that they give to image after image."""

    def __init__(self, config: Config, classes: int) -> None:
        self.config, self.classes = config, classes
        self.positive = Cache(classes, config.positive_capacity)
        self.negative = Cache(classes, config.negative_capacity)
        self.seen = 0

    def answer(self, seen: Evidence) -> Float[Tensor, "images classes"]:
        """Logits of images in their order: each enters a cache if it may, then both caches vote."""
        votes_for, votes_against = self.votes(seen)
        return seen.logits + votes_for - votes_against

    def votes(self, seen: Evidence) -> tuple[Tensor, Tensor]:
        """``(for, against)`` [images classes], weighed."""
        config = self.config
        low, high = config.entropy_window
        hn = evidence.normalized(seen.entropy, self.classes)
        unsure = ((low < hn) & (hn < high)).tolist()
        labels, entropies = seen.label.tolist(), seen.entropy.tolist()
        everyone = [config.positive] * len(labels)
        nothing = seen.logits.new_zeros(seen.logits.shape)
        votes_for = votes_against = nothing
        if config.positive:
            live = self.positive.insert(seen.feature, labels, entropies, everyone, first=self.seen)
            weights = self.positive.affinity(seen.feature, live, beta=config.positive_beta)
            votes_for = config.positive_alpha * nothing.index_add(1, self.positive.labels_at(weights), weights)
        if config.negative:
            low, high = config.mask_window
            marks = (low < seen.probabilities) & (seen.probabilities < high)
            live = self.negative.insert(seen.feature, labels, entropies, unsure, first=self.seen, marks=marks)
            weights = self.negative.affinity(seen.feature, live, beta=config.negative_beta)
            votes_against = config.negative_alpha * weights @ self.negative.marks_at(weights)
        self.seen += len(labels)
        return votes_for, votes_against

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "positive": self.positive.state_dict(), "negative": self.negative.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]
        self.positive.load_state_dict(state["positive"])
        self.negative.load_state_dict(state["negative"])


@dataclass
class Cache:
    """A few features of each class, those of least entropy.

    Which image enters, and in whose place, hangs on labels and entropies alone. So a batch is taken in first, with the
    span of images during which each row was there; then all its affinities are one product. Rows that were given up are
    filled again by the next batch.

    By hand, capacity 1, three images of one class with entropies 0.5, 0.7, 0.2: the first enters, the second does not,
    the third takes its place. The live rows are {0}, {0}, {1}.
    """

    classes: int
    capacity: int
    slots: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    """Class -> (entropy, row), the surest first."""
    free: list[int] = field(default_factory=list)
    keys: Tensor | None = None
    """[rows, dim]"""
    marks: Tensor | None = None
    """[rows, classes], 0 or 1"""
    labels: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Which image of the test set is in a row."""

    def insert(
        self,
        features: Float[Tensor, "images dim"],
        labels: Sequence[int],
        entropies: Sequence[float],
        may: Sequence[bool],
        *,
        first: int = 0,
        marks: Tensor | None = None,
    ) -> Tensor:
        """Take images in, in their order; which rows were there when each was answered: bool [images, rows].

        Args:
            may: whether an image may enter.
            first: number of the first image.
            marks: classes that an image votes against.
        """
        born: dict[int, int] = {}
        died: dict[int, int] = {}
        source: list[tuple[int, int]] = []
        begin = {row for slots in self.slots.values() for _, row in slots}
        for i, (label, h) in enumerate(zip(labels, entropies)):
            slots = self.slots.setdefault(label, [])
            if not may[i] or (len(slots) >= self.capacity and not h < slots[-1][0]):
                continue
            if len(slots) >= self.capacity:
                died[slots.pop()[1]] = i
            row = self._new_row(label, first + i)
            born[row] = i
            source.append((row, i))
            insort_right(slots, (h, row), key=lambda slot: slot[0])
        self._store(features, marks, source)
        return self._live(len(labels), begin, born, died, features.device)

    def affinity(self, features: Tensor, live: Tensor, *, beta: float) -> Float[Tensor, "images rows"]:
        """``exp(-beta (1 - f . f_j))`` for the rows that were there, 0 for others."""
        if self.keys is None:
            return features.new_zeros(len(features), 0)
        weights = (features @ self.keys[: live.shape[1]].T).sub_(1).mul_(beta).exp_()
        return weights.masked_fill_(~live, 0)

    def labels_at(self, weights: Tensor) -> Int[Tensor, " rows"]:
        """The class of each column of `weights`."""
        return torch.tensor(self.labels[: weights.shape[1]], device=weights.device, dtype=torch.int64)

    def marks_at(self, weights: Tensor) -> Float[Tensor, "rows classes"]:
        """The marks of each column of `weights`."""
        return weights.new_zeros(0, self.classes) if self.marks is None else self.marks[: weights.shape[1]]

    def numbers_by_class(self) -> list[list[int]]:
        """Numbers of the images in the cache, for each class the surest first, -1 for an empty place."""
        found = [[self.numbers[row] for _, row in self.slots.get(c, ())] for c in range(self.classes)]
        return [row + [-1] * (self.capacity - len(row)) for row in found]

    def state_dict(self) -> dict[str, Any]:
        """Row by row as they are, so that a test that goes on sums in the same order."""
        slots = [[label, h, row] for label, found in self.slots.items() for h, row in found]
        state: dict[str, Any] = {"slots": slots, "free": list(self.free)}
        state |= {"labels": list(self.labels), "numbers": list(self.numbers)}
        tensors = {"keys": self.keys, "marks": self.marks}
        return state | {n: t[: len(self.labels)].cpu() for n, t in tensors.items() if t is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.slots, self.free = {}, list(state["free"])
        self.labels, self.numbers = list(state["labels"]), list(state["numbers"])
        for label, h, row in state["slots"]:
            self.slots.setdefault(label, []).append((h, row))
        self.keys, self.marks = state.get("keys"), state.get("marks")

    def _new_row(self, label: int, number: int) -> int:
        if self.free:
            row = self.free.pop()
            self.labels[row], self.numbers[row] = label, number
            return row
        self.labels.append(label)
        self.numbers.append(number)
        return len(self.labels) - 1

    def _store(self, features: Tensor, marks: Tensor | None, source: Sequence[tuple[int, int]]) -> None:
        if not source:
            return
        rows, images = ([pair[k] for pair in source] for k in (0, 1))
        self.keys = _with_rows(self.keys, features, len(self.labels))
        self.keys[rows] = features[images]
        if marks is not None:
            self.marks = _with_rows(self.marks, marks.to(features.dtype), len(self.labels))
            self.marks[rows] = marks[images].to(features.dtype)

    def _live(
        self, images: int, begin: set[int], born: Mapping[int, int], died: Mapping[int, int], device: torch.device
    ) -> Tensor:
        since = [born.get(row, 0 if row in begin else images) for row in range(len(self.labels))]
        until = [died.get(row, images) for row in range(len(self.labels))]
        self.free += died
        turn = torch.arange(images, device=device)[:, None]
        spans = torch.tensor([since, until], device=device, dtype=torch.int64)
        return (spans[0] <= turn) & (turn < spans[1])


def _with_rows(stored: Tensor | None, like: Tensor, rows: int) -> Tensor:
    """At least so many rows, in the type and on the device of `like`."""
    have = 0 if stored is None else len(stored)
    if stored is not None and have >= rows:
        return stored if stored.device == like.device else stored.to(like.device)
    grown = like.new_zeros(max(rows, 2 * have), like.shape[1])
    if stored is not None:
        grown[:have] = stored.to(like.device)
    return grown
