"""Styles: shifts of the distribution that leave the label as it is.

Knows ten ways to change how a scene looks, and how strongly at severity 1 to 5. Does not know classes
or words. `plain` is what pretraining sees; the others play the parts that ImageNet-A, -R, -Sketch, -V2
and -C play for real models. Here too every operation is exactly rounded, so pictures are the same on
every machine.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from perdure.data.microworld import draws, render, scenes
from perdure.data.microworld.scenes import Scenes

Canvas = np.ndarray
"""float32 ``[scenes, h, w, 3]`` in 0..255, before rounding."""

STYLES = (
    *("plain", "sketch", "inverted", "noise", "blur"),
    *("pixelated", "contrast", "textured", "rotated", "tinted"),
)
"""`plain` and the nine shifts that no pretraining saw. `natural` beside them is a rare look of pretraining."""

_LUMA = np.asarray((0.299, 0.587, 0.114), np.float32)
_TANGENT = (0.1051, 0.1584, 0.2126, 0.2679, 0.3640)
"""Tangent of half of 12, 18, 24, 30 and 40 degrees, by severity."""


def pictures(world: Scenes, style: str = "plain", severity: int = 3, image_size: int = 32) -> render.Pictures:
    """``[scenes, image_size, image_size, 3]`` uint8 of the scenes in a style; `severity` is 1 .. 5."""
    if style == "plain":
        return render.pictures(world, image_size)
    canvas, cover = render.canvases(shown(world, style, severity), image_size)
    if style != "rotated":
        canvas = _CHANGES[style](canvas, cover, world.key, severity - 1)
    return np.clip(canvas + np.float32(0.5), 0, 255).astype(np.uint8)


def shown(world: Scenes, style: str, severity: int = 3) -> Scenes:
    """The scenes as a style shows them: `rotated` moves objects, the others leave them where they are."""
    if style != "rotated":
        return world
    sign = np.where(draws.uniform(world.key, 30)[:, 0] < 0.5, -1.0, 1.0)
    return scenes.turned(world, sign * _TANGENT[severity - 1])


def _sketch(canvas: Canvas, cover, key, s: int) -> Canvas:
    """Edges in light gray on dark; at lower severities some of the picture shines through."""
    share = np.float32((0.3, 0.45, 0.6, 0.8, 1.0)[s])
    luma = _luma(canvas)
    wide = np.pad(luma, ((0, 0), (1, 1), (1, 1)), mode="edge")
    dx, dy = wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2], wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]
    edges = np.minimum(np.sqrt(dx * dx + dy * dy), 235)[..., None]
    return canvas * (1 - share) + edges * share


def _inverted(canvas: Canvas, cover, key, s: int) -> Canvas:
    """Brightness goes towards its negative: the dark ground more than the objects; hues are kept."""
    share = np.float32((0.05, 0.08, 0.11, 0.16, 0.3)[s])
    luma = _luma(canvas)
    return canvas + (share * (np.float32(235) - 2 * luma))[..., None] * (1 - cover * np.float32(0.6))[..., None]


def _noise(canvas: Canvas, cover, key, s: int) -> Canvas:
    deviation = np.float32((12, 20, 30, 42, 56)[s])
    n, size = canvas.shape[:2]
    return canvas + deviation * draws.normal(key, 31, size * size * 3).reshape(n, size, size, 3)


def _blur(canvas: Canvas, cover, key, s: int) -> Canvas:
    """[w, 1 - 2w, w] along both axes, repeated; more often for larger pictures, so that the width scales."""
    side = np.float32((0.05, 0.1, 0.15, 0.2, 0.25)[s])
    times = (1, 1, 1, 1, 2)[s] * (canvas.shape[1] // 32) ** 2
    for _ in range(times):
        wide = np.pad(canvas, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
        canvas = canvas * (1 - 2 * side) + (wide[:, :-2] + wide[:, 2:]) * side
        wide = np.pad(canvas, ((0, 0), (0, 0), (1, 1), (0, 0)), mode="edge")
        canvas = canvas * (1 - 2 * side) + (wide[:, :, :-2] + wide[:, :, 2:]) * side
    return canvas


def _pixelated(canvas: Canvas, cover, key, s: int) -> Canvas:
    """Averages over a coarse grid of 16 x 16, mixed with the picture at lower severities."""
    share = np.float32((0.35, 0.55, 0.75, 0.9, 1.0)[s])
    side = canvas.shape[1] // 16
    corners = [canvas[:, y::side, x::side] for y in range(side) for x in range(side)]
    coarse = corners[0]
    for corner in corners[1:]:
        coarse = coarse + corner
    coarse = np.repeat(np.repeat(coarse / np.float32(side * side), side, axis=1), side, axis=2)
    return canvas * (1 - share) + coarse * share


def _contrast(canvas: Canvas, cover, key, s: int) -> Canvas:
    """Less contrast around a dark gray."""
    share = np.float32((0.8, 0.65, 0.5, 0.4, 0.3)[s])
    return np.float32(55) + (canvas - np.float32(55)) * share


def _textured(canvas: Canvas, cover, key, s: int) -> Canvas:
    """A busy, colored ground of random blocks of two sizes behind the objects."""
    height = np.float32((15, 25, 38, 55, 80)[s])
    n, size = canvas.shape[:2]
    texture = np.zeros_like(canvas)
    for channel, cells in ((32, 8), (33, 16)):
        blocks = draws.uniform(key, channel, cells * cells * 3).astype(np.float32)
        index = np.arange(size) * cells // size
        texture += blocks.reshape(n, cells, cells, 3)[:, index][:, :, index] * np.float32(0.5)
    return canvas + height * texture * (1 - cover)[..., None]


def _tinted(canvas: Canvas, cover, key, s: int) -> Canvas:
    """Colored light: each picture has its own color, that is multiplied in and also lifts the ground."""
    share = np.float32((0.15, 0.25, 0.35, 0.5, 0.7)[s])
    light = draws.uniform(key, 34, 3).astype(np.float32)[:, None, None, :]
    return canvas * (1 - share + share * light) + share * 40 * light


def _luma(canvas: Canvas) -> Canvas:
    """Brightness ``[scenes, h, w]``; summed in a fixed order."""
    return canvas[..., 0] * _LUMA[0] + canvas[..., 1] * _LUMA[1] + canvas[..., 2] * _LUMA[2]


def _natural(canvas: Canvas, cover, key, s: int) -> Canvas:
    """As a camera finds things: a colored, blotched ground with bars across it, one of them before the object, light
    from one side, and grain."""
    strength = np.float32((0.25, 0.35, 0.45, 0.65, 0.9)[s])
    n, size = canvas.shape[:2]
    behind = (1 - cover)[..., None]
    ground = _blotches(key, 50, 3, size) * np.float32(90) + _blotches(key, 51, 9, size) * np.float32(50)
    canvas = canvas + strength * ground * behind
    for channel, before in ((52, False), (53, False), (54, True)):
        bar, color = _bars(key, channel, size, strength)
        over = bar if before else bar * behind
        canvas = canvas * (1 - over) + color * over
    # Light falls off along a direction of its own and has a tint of its own.
    toward = draws.uniform(key, 55, 2).astype(np.float32) * 2 - 1
    places = ((np.arange(size) + np.float32(0.5)) / np.float32(size) * 2 - 1).astype(np.float32)
    slope = toward[:, 0, None, None] * places[None, None, :] + toward[:, 1, None, None] * places[None, :, None]
    tint = draws.uniform(key, 56, 3).astype(np.float32)[:, None, None, :] - np.float32(0.5)
    light = 1 + strength * (np.float32(0.25) * slope[..., None] + np.float32(0.3) * tint)
    grain = draws.normal(key, 57, size * size * 3).reshape(n, size, size, 3)
    return canvas * light + strength * np.float32(7) * grain


def _blotches(key, channel: int, cells: int, size: int) -> Canvas:
    """A random color on each point of a grid of `cells` a side, 0..1, mixed linearly between the points."""
    n = len(key)
    grid = draws.uniform(key, channel, cells * cells * 3).astype(np.float32).reshape(n, cells, cells, 3)
    at = ((np.arange(size) + 0.5) / size * (cells - 1)).astype(np.float32)
    low = np.minimum(at.astype(np.int64), cells - 2)
    part = (at - low).astype(np.float32)
    rows = grid[:, low] * (1 - part)[:, None, None] + grid[:, low + 1] * part[:, None, None]
    return rows[:, :, low] * (1 - part)[:, None] + rows[:, :, low + 1] * part[:, None]


def _bars(key, channel: int, size: int, strength) -> tuple[Canvas, Canvas]:
    """Where a bar of random place, direction and width lies ``[scenes, h, w, 1]``, and its color."""
    drawn = draws.uniform(key, channel, 7).astype(np.float32)[:, :, None, None]
    places = ((np.arange(size) + np.float32(0.5)) / np.float32(size) * 2 - 1).astype(np.float32)
    a, b, c = drawn[:, 0] * 2 - 1, drawn[:, 1] * 2 - 1, (drawn[:, 2] * 2 - 1) * np.float32(0.8)
    steep = np.sqrt(a * a + b * b) + np.float32(1e-3)
    distance = abs(a * places[None, None, :] + b * places[None, :, None] + c * steep) / steep
    width = strength * (np.float32(0.04) + np.float32(0.08) * drawn[:, 3])
    color = np.float32(30) + np.float32(180) * np.moveaxis(drawn[:, 4:7], 1, -1)
    return np.clip((width - distance) * np.float32(size / 2) + np.float32(0.5), 0, 1)[..., None], color


_CHANGES: dict[str, Callable[..., Canvas]] = {
    "sketch": _sketch,
    "inverted": _inverted,
    "noise": _noise,
    "blur": _blur,
    "pixelated": _pixelated,
    "contrast": _contrast,
    "textured": _textured,
    "tinted": _tinted,
    "natural": _natural,
}
