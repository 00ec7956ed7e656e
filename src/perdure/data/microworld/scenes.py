"""What the world holds: objects, where they lie, and how they lie to each other.

Knows shapes, fills, colours, sizes, places, the classes, and the combinations that pretraining never
sees. Does not know pixels (`render`), words beyond the canonical ones (`words`) or files.

Settled on grounds of validity, before any method was run: an object's centre is anywhere that keeps it
inside the picture (at 32 px, +-6.5 px for large and +-9.5 px for small objects; a named place is a third
of that range), it is turned by up to 15 degrees, its size varies by 10 %, and its fill has a free phase
and is turned on its own by up to 20 degrees.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perdure.data.microworld import draws

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "diamond", "heart", "arrow")
FILLS = ("solid", "striped", "dotted", "checked")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
SIZES = ("small", "large")
PLACES = (
    *("top left", "top", "top right"),
    *("left", "center", "right"),
    *("bottom left", "bottom", "bottom right"),
)
RELATIONS = ("left of", "right of", "above", "below")

RADIUS = (6 / 32, 8.5 / 32)
"""Radius of a small and of a large object, in widths of the picture."""
CLOSE = (9.5 / 32, 12 / 32)
"""The same where an object fills its picture, as in photographs of one thing."""
REACH = 1.24
"""No point of an object is farther from its centre than this many radii (a star's tips)."""
MOST = 3
"""Most objects in a scene."""

PAIRS = tuple((i % 10, (i // 10 + i % 10) % 4) for i in range(40))
"""(shape, fill) of each class. The order mixes shapes and fills, so that any cut of it is a fair task."""
CLASSES = tuple(f"{FILLS[fill]} {SHAPES[shape]}" for shape, fill in PAIRS)
HELD_OUT = frozenset((shape, (3 * shape + shape // 4 + 1) % 4) for shape in range(10))
"""(shape, fill) of the ten combinations, one a shape, that pretraining never sees."""
SEEN = tuple(pair for pair in PAIRS if pair not in HELD_OUT)

_TRIES = 24
_FIELDS = ("shape", "fill", "color", "size", "x", "y", "radius", "turn", "fill_turn", "phase")


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Many scenes as arrays. Axis 0 is the scene, axis 1 the object (only the first `count` are there)."""

    key: draws.Keys
    """``[scenes]``; noise and styles are drawn from it."""
    count: NDArray[np.int64]
    """``[scenes]`` number of objects, 1 .. 3."""
    shape: NDArray[np.int64]
    """``[scenes, 3]`` index into SHAPES; `fill`, `color`, `size` likewise."""
    fill: NDArray[np.int64]
    color: NDArray[np.int64]
    size: NDArray[np.int64]
    x: NDArray[np.float64]
    """``[scenes, 3]`` centre in widths of the picture, from the left; `y` from the top."""
    y: NDArray[np.float64]
    radius: NDArray[np.float64]
    """``[scenes, 3]`` in widths of the picture."""
    turn: NDArray[np.float64]
    """``[scenes, 3]`` tangent of half the angle by which the object is turned; `fill_turn` the fill's."""
    fill_turn: NDArray[np.float64]
    phase: NDArray[np.float64]
    """``[scenes, 3, 2]`` where the fill's pattern starts, in periods."""

    def __len__(self) -> int:
        return len(self.key)

    def select(self, rows: NDArray[np.int64] | slice) -> Scenes:
        """These scenes only."""
        kept = {name: getattr(self, name)[rows] for name in ("key", "count", *_FIELDS)}
        return replace(self, **kept)

    def objects(self, row: int) -> list[Object]:
        """The objects of one scene."""
        return [
            Object(
                shape=SHAPES[self.shape[row, i]],
                fill=FILLS[self.fill[row, i]],
                color=COLORS[self.color[row, i]],
                size=SIZES[self.size[row, i]],
                place=place(self.x[row, i], self.y[row, i], self.radius[row, i]),
                x=float(self.x[row, i]),
                y=float(self.y[row, i]),
            )
            for i in range(self.count[row])
        ]


@dataclass(frozen=True, kw_only=True)
class Object:
    """One object in canonical words; `x`, `y` are its centre in widths of the picture."""

    shape: str
    fill: str
    color: str
    size: str
    place: str
    x: float
    y: float


def of_classes(
    seed: int,
    split: str,
    indices: NDArray[np.int64],
    labels: NDArray[np.int64],
    *,
    radii: tuple[float, float] = RADIUS,
) -> Scenes:
    """Scenes of one object each, of the classes `labels` ``[scenes]`` and one of the two `radii`."""
    key = draws.keys(seed, split, indices)
    pairs = np.asarray(PAIRS)[labels]
    count = np.ones(len(key), np.int64)
    return _lay_out(key, count, np.repeat(pairs[:, None, :], MOST, axis=1), radii)


def of_anything(
    seed: int,
    split: str,
    indices: NDArray[np.int64],
    *,
    pairs: tuple[tuple[int, int], ...] = PAIRS,
    shares: tuple[float, float, float] = (0.6, 0.25, 0.15),
) -> Scenes:
    """Scenes of one to three objects (with these `shares`) whose (shape, fill) are all among `pairs`."""
    key = draws.keys(seed, split, indices)
    drawn = draws.uniform(key, 1)[:, 0]
    count = 1 + (drawn >= shares[0]).astype(np.int64) + (drawn >= shares[0] + shares[1])
    return _lay_out(key, count, np.asarray(pairs)[draws.integers(key, 2, len(pairs), MOST)])


def place(x: float, y: float, radius: float) -> str:
    """The named place of a centre: thirds of the range that keeps an object of its nominal size inside."""
    nominal = min((*RADIUS, *CLOSE), key=lambda r: abs(r - radius))
    column, row = (min(2, max(0, int((v - nominal) / (1 - 2 * nominal) * 3))) for v in (x, y))
    return PLACES[3 * row + column]


def relation(a: Object, b: Object) -> str:
    """How `a` lies to `b`, along the axis on which they are farther apart."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def turned(scenes: Scenes, tangent: NDArray[np.float64]) -> Scenes:
    """The scenes turned about the picture's centre; `tangent` ``[scenes]`` is that of half the angle.

    Objects that would leave the picture are moved back to its border.
    """
    t = tangent[:, None]
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    dx, dy = scenes.x - 0.5, scenes.y - 0.5
    low = scenes.radius
    x = np.clip(0.5 + cosine * dx - sine * dy, low, 1 - low)
    y = np.clip(0.5 + sine * dx + cosine * dy, low, 1 - low)
    # Angles add: tan(a + b) from tan a and tan b.
    turn = (scenes.turn + t) / (1 - scenes.turn * t)
    return replace(scenes, x=x, y=y, turn=turn)


def _lay_out(
    key: draws.Keys, count: NDArray[np.int64], pairs: NDArray[np.int64], radii: tuple[float, float] = RADIUS
) -> Scenes:
    """Sizes, colours and places for objects of these (shape, fill) ``[scenes, 3, 2]``."""
    n = len(key)
    # Objects must find room: of two one may be large, of three none.
    large = draws.integers(key, 3, 2, MOST)
    spared = draws.integers(key, 10, 2)
    alone, several = (count == 1)[:, None], (count == 2)[:, None]
    size = np.where(alone | (several & (np.arange(MOST) == spared)), large, 0)
    radius = np.asarray(radii)[size] * (0.9 + 0.2 * draws.uniform(key, 4, MOST))
    x, y, fits = _places(key, np.asarray(radii)[size])
    return Scenes(
        key=key,
        # Where three (two) objects cannot keep their distance, the last ones are left out.
        count=np.minimum(count, fits),
        shape=pairs[..., 0],
        fill=pairs[..., 1],
        color=draws.integers(key, 5, len(COLORS), MOST),
        size=size,
        x=x,
        y=y,
        radius=radius,
        turn=(2 * draws.uniform(key, 6, MOST) - 1) * 0.1317,
        fill_turn=(2 * draws.uniform(key, 7, MOST) - 1) * 0.1763,
        phase=draws.uniform(key, 8, 2 * MOST).reshape(n, MOST, 2),
    )


def _places(key: draws.Keys, nominal: NDArray[np.float64]):
    """Centres ``[scenes, 3]`` and how many of the objects, from the first, keep clear of each other.

    A fixed number of tries each, the first that fits: no loop that might not end.
    """
    n = len(key)
    margin = nominal[:, :, None]
    drawn = draws.uniform(key, 9, 2 * MOST * _TRIES).reshape(n, MOST, 2, _TRIES)
    tries = margin[..., None] + (1 - 2 * margin[..., None]) * drawn
    # The margin of 1.1 covers the 10 % by which sizes vary, so that every object is inside.
    tries = np.clip(tries, 1.1 * margin[..., None], 1 - 1.1 * margin[..., None])
    x, y = tries[:, :, 0, 0].copy(), tries[:, :, 1, 0].copy()
    fits = np.full(n, MOST)
    for i in range(1, MOST):
        clear = np.ones((n, _TRIES), bool)
        for j in range(i):
            dx, dy = tries[:, i, 0] - x[:, j, None], tries[:, i, 1] - y[:, j, None]
            apart = (nominal[:, i] + nominal[:, j])[:, None]
            clear &= dx * dx + dy * dy >= apart * apart
        first = clear.argmax(axis=1)
        rows = np.arange(n)
        x[:, i], y[:, i] = tries[rows, i, 0, first], tries[rows, i, 1, first]
        fits = np.where(clear.any(axis=1), fits, np.minimum(fits, i))
    return x, y, fits
