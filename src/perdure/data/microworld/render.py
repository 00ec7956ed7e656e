"""Scenes to pixels: anti-aliased pictures, exact masks and boxes.

Knows the outline of each shape and the pattern of each fill. Does not know styles, words or classes.
Coverage is counted on a 4 x 4 grid of samples a pixel; every operation is one that IEEE 754 rounds
exactly, so pictures are the same to the bit on every machine.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from perdure.data.microworld import draws
from perdure.data.microworld.scenes import CLOSE, MOST, RADIUS, REACH, SHAPES, Scenes

Pictures = NDArray[np.uint8]
Plane = NDArray[np.float32]
Masks = np.ndarray
"""Boolean ``[..., h, w]``."""

SAMPLES = 4
"""Samples a pixel along each axis."""
RGB = np.asarray(
    [
        (225, 50, 45),  # red
        (50, 180, 60),  # green
        (60, 90, 235),  # blue
        (240, 220, 50),  # yellow
        (165, 60, 200),  # purple
        (245, 145, 35),  # orange
        (60, 210, 220),  # cyan
        (240, 240, 240),  # white
    ],
    np.float32,
)
GAP = np.float32(0.36)
"""Brightness of a pattern's dark parts, relative to the object's color."""
_CHUNK = 32  # scenes at a time: the sample planes stay in the processor's cache


def pictures(scenes: Scenes, image_size: int = 32) -> Pictures:
    """``[scenes, image_size, image_size, 3]``: objects on a dark, slightly noisy ground, uint8 RGB."""
    return np.clip(canvases(scenes, image_size)[0] + np.float32(0.5), 0, 255).astype(np.uint8)


def canvases(scenes: Scenes, image_size: int = 32) -> tuple[Plane, NDArray[np.float32]]:
    """Pictures before rounding ``[scenes, h, w, 3]`` in 0..255 and the objects' coverage ``[scenes, h, w]``."""
    parts = [scenes.select(slice(i, i + _CHUNK)) for i in range(0, len(scenes), _CHUNK)]
    drawn = [_canvas(part, image_size) for part in parts]
    return np.concatenate([c for c, _ in drawn]), np.concatenate([a for _, a in drawn])


def masks(scenes: Scenes, image_size: int = 32) -> Masks:
    """``[scenes, 3, h, w]``: the pixels that are covered at least by half; later objects lie on top."""
    found = np.zeros((len(scenes), MOST, image_size, image_size), bool)
    for start in range(0, len(scenes), _CHUNK):
        part = scenes.select(slice(start, start + _CHUNK))
        for i in range(MOST):
            rows, ys, xs, body, _ = _coverage(part, i, image_size)
            half = np.asarray(body >= SAMPLES * SAMPLES // 2)
            found[start + rows, :i, ys, xs] &= ~half[..., None]
            found[start + rows, i, ys, xs] = half
    return found


def boxes(masks: Masks) -> NDArray[np.int64]:
    """Tight boxes ``[..., 4]`` (left, top, right, bottom; right and bottom exclusive) of masks ``[..., h, w]``.

    An empty mask gives four zeros.
    """
    columns, rows = np.asarray(masks.any(axis=-2)), np.asarray(masks.any(axis=-1))
    height, width = masks.shape[-2:]
    found = np.stack(
        [
            columns.argmax(-1),
            rows.argmax(-1),
            width - columns[..., ::-1].argmax(-1),
            height - rows[..., ::-1].argmax(-1),
        ],
        axis=-1,
    )
    return np.where(np.asarray(columns.any(axis=-1))[..., None], found, 0)


def _canvas(scenes: Scenes, size: int) -> tuple[Plane, NDArray[np.float32]]:
    n = len(scenes)
    level = (14 + 26 * draws.uniform(scenes.key, 20)).astype(np.float32)
    grain = 5 * draws.normal(scenes.key, 21, size * size)
    canvas = np.repeat(np.broadcast_to(level, (n, size * size))[..., None], 3, axis=-1)
    canvas = canvas.reshape(n, size, size, 3).copy()
    cover = np.zeros((n, size, size), np.float32)
    shade = (0.86 + 0.28 * draws.uniform(scenes.key, 22, 3 * MOST)).astype(np.float32).reshape(n, MOST, 3)
    for i in range(MOST):
        rows, ys, xs, body, bright = _coverage(scenes, i, size)
        if not len(scenes):
            continue
        scale = np.float32(1 / (SAMPLES * SAMPLES))
        body, bright = body * scale, bright * scale
        color = RGB[scenes.color[rows[:, 0, 0], i]] * shade[rows[:, 0, 0], i]
        light = bright + GAP * (body - bright)
        under = canvas[rows, ys, xs] * (1 - body)[..., None]
        canvas[rows, ys, xs] = under + color[:, None, None, :] * light[..., None]
        cover[rows, ys, xs] = np.maximum(cover[rows, ys, xs], body)
    return canvas + grain.reshape(n, size, size, 1), cover


def _coverage(scenes: Scenes, i: int, size: int):
    """The i-th objects, each in a window around it: its scene and pixel indices, broadcastable to
    ``[objects, window, window]``, and how many samples of each pixel lie in its body and in its bright part."""
    present = np.flatnonzero(scenes.count > i)
    close = (scenes.radius[present, i] > 1.1 * max(RADIUS)).any()
    window = min(size, int(2 * REACH * 1.1 * max(CLOSE if close else RADIUS) * size) + 2)
    x, y = scenes.x[present, i] * size, scenes.y[present, i] * size
    left, top = (np.clip((v - window / 2).astype(np.int64), 0, size - window) for v in (x, y))
    grid = (np.arange(window * SAMPLES) + 0.5) / SAMPLES
    dx, dy = (left - x)[:, None] + grid, (top - y)[:, None] + grid
    u, v = _turn(dx[:, None, :], dy[:, :, None], scenes.turn[present, i])
    radius = (scenes.radius[present, i] * size)[:, None, None]
    u, v = u / radius, v / radius
    inside = np.empty(u.shape, bool)
    shape = scenes.shape[present, i]
    for kind in np.unique(shape):
        rows = shape == kind
        inside[rows] = _OUTLINES[SHAPES[kind]](u[rows], v[rows])
    bright = inside & _pattern(scenes, present, i, dx / size, dy / size)
    offsets = np.arange(window)
    rows = present[:, None, None]
    ys, xs = (top[:, None] + offsets)[:, :, None], (left[:, None] + offsets)[:, None, :]
    return rows, ys, xs, _count(inside), _count(bright)


def _turn(x, y, tangent):
    """Coordinates in a frame that is turned by twice the angle of `tangent` (rational, so exact)."""
    t = tangent[:, None, None]
    scale = 1 / (1 + t * t)
    cosine, sine = ((1 - t * t) * scale).astype(np.float32), (2 * t * scale).astype(np.float32)
    x, y = x.astype(np.float32), y.astype(np.float32)
    return cosine * x + sine * y, cosine * y - sine * x


def _count(samples: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Samples ``[n, 4 h, 4 w]`` -> number that are true in each pixel ``[n, h, w]``."""
    n, height, width = samples.shape
    blocks = samples.view(np.uint8).reshape(n, height // SAMPLES, SAMPLES, width)
    rows = blocks[:, :, 0] + blocks[:, :, 1] + blocks[:, :, 2] + blocks[:, :, 3]
    rows = rows.reshape(n, height // SAMPLES, width // SAMPLES, SAMPLES)
    return (rows[..., 0] + rows[..., 1] + rows[..., 2] + rows[..., 3]).astype(np.float32)


def _pattern(scenes: Scenes, present, i: int, dx, dy) -> NDArray[np.bool_]:
    """Where the fills are bright. Periods are in widths of the picture, whatever the object's size."""
    fill = scenes.fill[present, i]
    bright = np.ones((len(present), dy.shape[1], dx.shape[1]), bool)
    for kind, period in ((1, 3.8 / 32), (2, 4.0 / 32), (3, 2.4 / 32)):
        rows = np.flatnonzero(fill == kind)
        u, v = _turn(dx[rows, None, :], dy[rows, :, None], scenes.fill_turn[present[rows], i])
        phase = scenes.phase[present[rows], i].astype(np.float32)[:, :, None, None]
        u, v = u / np.float32(period) + phase[:, 0], v / np.float32(period) + phase[:, 1]
        if kind == 1:
            bright[rows] = v - np.floor(v) < 0.5
        elif kind == 2:
            u, v = u - np.floor(u) - np.float32(0.5), v - np.floor(v) - np.float32(0.5)
            bright[rows] = u * u + v * v > 0.35 * 0.35
        else:
            bright[rows] = (np.floor(u) + np.floor(v)).astype(np.int64) % 2 == 0
    return bright


def _star(u, v):
    """Inside at least four of the five lines that a pentagram is drawn with."""
    tips = ((0.0, -1.0), (0.95105652, -0.30901699), (0.58778525, 0.80901699))
    tips += ((-0.58778525, 0.80901699), (-0.95105652, -0.30901699))
    inside = [(np.float32(a) * u + np.float32(b) * v <= 0.38).view(np.uint8) for a, b in tips]
    return inside[0] + inside[1] + inside[2] + inside[3] + inside[4] >= 4


def _heart(u, v):
    """The sextic heart (x^2 + y^2 - 1)^3 <= x^2 y^3."""
    x, y = np.float32(1.22) * u, np.float32(0.12) - np.float32(1.16) * v
    squares = x * x + y * y - 1
    return squares * squares * squares <= x * x * y * y * y


def _arrow(u, v):
    shaft = (abs(v) <= 0.32) & (u >= -0.95) & (u <= 0.1)
    return shaft | ((u >= 0.02) & (u + np.float32(1.12) * abs(v) <= 0.98))


_OUTLINES: dict[str, Callable[[Plane, Plane], NDArray[np.bool_]]] = {
    "circle": lambda u, v: u * u + v * v <= 0.92 * 0.92,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.78,
    "triangle": lambda u, v: (v <= 0.72) & (v >= np.float32(1.9) * abs(u) - np.float32(0.95)),
    "star": _star,
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) <= 0.36) & (np.maximum(abs(u), abs(v)) <= 0.92),
    "ring": lambda u, v: abs(u * u + v * v - np.float32(0.54)) <= 0.38,
    "crescent": lambda u, v: (
        (u * u + v * v <= 0.95 * 0.95) & ((u - np.float32(0.55)) * (u - np.float32(0.55)) + v * v > 0.7 * 0.7)
    ),
    "diamond": lambda u, v: abs(u) * np.float32(1.35) + abs(v) <= 1,
    "heart": _heart,
    "arrow": _arrow,
}
"""Inside or not, at points (u, v) in radii from the centre, u to the right, v down."""
