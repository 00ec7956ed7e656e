"""In which order test images arrive where it is not simply shuffled: corruptions one after another, classes in bursts.

Knows labels, positions and names of corruptions. Does not know images or data sets. CoTTA's orders are those of Wang et
al., CVPR 2022; imbalanced label shift is that of SAR (Niu et al., ICLR 2023).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from perdure.types import Example, Examples

COTTA_ORDERS: tuple[tuple[int, ...], ...] = (
    (11, 14, 1, 6, 7, 5, 3, 15, 4, 13, 2, 9, 8, 10, 12),
    (15, 2, 7, 9, 12, 10, 4, 13, 1, 11, 5, 3, 14, 8, 6),
    (12, 4, 1, 2, 8, 9, 5, 7, 13, 15, 14, 11, 3, 6, 10),
    (2, 10, 5, 14, 8, 13, 11, 3, 4, 9, 12, 1, 6, 15, 7),
    (14, 5, 7, 8, 10, 3, 11, 6, 9, 15, 1, 2, 12, 4, 13),
    (6, 8, 10, 2, 4, 12, 7, 11, 9, 13, 5, 1, 14, 15, 3),
    (9, 3, 15, 12, 7, 5, 14, 8, 4, 6, 11, 13, 2, 10, 1),
    (5, 7, 3, 10, 8, 15, 1, 9, 2, 11, 12, 6, 14, 4, 13),
    (4, 6, 7, 2, 1, 5, 15, 10, 12, 14, 9, 8, 11, 13, 3),
    (12, 1, 4, 7, 9, 5, 15, 10, 14, 13, 2, 3, 8, 6, 11),
)
"""Numbers of the corruptions, from 1 in their usual order, in each of ten runs."""
DRAWS = 100
"""Images that arrive while one class is frequent."""


def gradual(severities: int = 5) -> list[list[int]]:
    """Severities of the first corruption, and of each later one: falling, then rising and falling."""
    up = list(range(1, severities + 1))
    return [up[::-1], up + up[-2::-1]]


def imbalanced(targets: Sequence[Any], ratio: float, *, seed: int) -> list[int]:
    """Positions, drawn with replacement: class after class, 100 draws in which it has the share ``r / (r + C - 1)`` and
    each other ``1 / (r + C - 1)``. Of classes without images nothing is drawn."""
    draw = random.Random(seed)
    places: dict[Any, list[int]] = {}
    for position, target in enumerate(targets):
        places.setdefault(target, []).append(position)
    classes = sorted(places, key=str)
    order = draw.sample(classes, len(classes))
    return [
        draw.choice(places[drawn])
        for now in order
        for drawn in draw.choices(classes, [ratio if c == now else 1.0 for c in classes], k=DRAWS)
    ]


def repeated(examples: Examples, positions: Sequence[int]) -> Examples:
    """The examples at these positions; one that comes again has a number after its name."""
    times: dict[int, int] = {}
    turns = []
    for position in positions:
        turns.append(times.get(position, 0))
        times[position] = turns[-1] + 1
    return Examples(_Again(examples, tuple(positions), tuple(turns)), [examples.targets[p] for p in positions])


def joined(parts: Sequence[Examples], names: Sequence[str]) -> Examples:
    """Several sets as one, each example with the name of its set before its own."""
    places = [(k, i) for k, part in enumerate(parts) for i in range(len(part))]
    return Examples(_Joined(tuple(parts), tuple(names), tuple(places)), [t for part in parts for t in part.targets])


class _Again:
    """Makes examples that may come again (a class, so that loader workers can receive it)."""

    def __init__(self, examples: Examples, positions: tuple[int, ...], turns: tuple[int, ...]) -> None:
        self.examples, self.positions, self.turns = examples, positions, turns

    def __call__(self, index: int, target: Any) -> Example:
        example, turn = self.examples[self.positions[index]], self.turns[index]
        return replace(example, id=f"{example.id}#{turn + 1}" if turn else example.id, target=target)


class _Joined:
    """Makes examples out of several sets."""

    def __init__(
        self, parts: tuple[Examples, ...], names: tuple[str, ...], places: tuple[tuple[int, int], ...]
    ) -> None:
        self.parts, self.names, self.places = parts, names, places

    def __call__(self, index: int, target: Any) -> Example:
        part, position = self.places[index]
        example = self.parts[part][position]
        return replace(example, id=f"{self.names[part]}: {example.id}", target=target)
