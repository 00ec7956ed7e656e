"""Clips of the world: up to three objects, each seen in some seconds and heard in some.

Knows which objects are seen and heard when, in the four sorts of clips that audio-visual data sets have, and turns them
into frames and masks. Does not know waves (`sound`), questions (`clip_questions`) or files (`clip_files`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perdure.data.microworld import draws, render, scenes, sound
from perdure.data.microworld.scenes import COLORS, MOST, SHAPES, Scenes

SECONDS = 10
EVENTS = tuple((shape, (3 * shape + 4 * half) % 8) for shape in range(len(SHAPES)) for half in range(2))
"""(shape, color) of the classes of localized events: two colors a shape, so that both are needed."""
EVENT_CLASSES = tuple(f"{COLORS[color]} {SHAPES[shape]}" for shape, color in EVENTS)

Spans = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Many clips as arrays; axis 0 is the clip."""

    scenes: Scenes
    """The objects; they stay where they are."""
    seen: Spans
    """``[clips, 3, seconds]``; of objects that are not there, false."""
    heard: Spans
    """``[clips, 3, seconds]``."""

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def seconds(self) -> int:
        """Of each clip."""
        return self.seen.shape[2]


def localized(seed: int, split: str, indices: NDArray[np.int64]) -> Clips:
    """An object of EVENTS is seen and heard at the same time for 2 to 10 seconds; class = index modulo 20.

    Before and after, it is seen alone, heard alone, or neither. In a third of the clips a silent object of another
    shape is seen all the time. The event's object is the first.
    """
    key = draws.keys(seed, f"localized/{split}", indices)
    drawn, n = _objects(seed, f"localized/{split}", indices), len(indices)
    shape, color = np.asarray(EVENTS)[indices % len(EVENTS)].T
    drawn = _with_first(drawn, shape, color, count=1 + (draws.uniform(key, 80)[:, 0] < 1 / 3))
    event = _span(key, 81, shortest=2)
    time = np.arange(SECONDS)
    begin, end = event.argmax(1), SECONDS - event[:, ::-1].argmax(1)
    seen, heard = (np.zeros((n, MOST, SECONDS), bool) for _ in range(2))
    seen[:, 0], heard[:, 0] = event, event
    for channel, flank in ((82, time < begin[:, None]), (83, time >= end[:, None])):
        sort = draws.integers(key, channel, 3)  # seen alone, heard alone, neither
        seen[:, 0] |= flank & (sort == 0)
        heard[:, 0] |= flank & (sort == 1)
    seen[:, 1] = (drawn.count == 2)[:, None]
    return Clips(scenes=drawn, seen=seen, heard=heard)


def parsed(seed: int, split: str, indices: NDArray[np.int64]) -> Clips:
    """One to three objects of different shapes; half are seen and heard, each in a span of its own, a quarter are only
    seen, a quarter only heard."""
    key = draws.keys(seed, f"parsed/{split}", indices)
    drawn = _objects(seed, f"parsed/{split}", indices, shares=(0.3, 0.4, 0.3))
    sort = draws.integers(key, 81, 4, MOST)[:, :, None]
    there = (np.arange(MOST) < drawn.count[:, None])[:, :, None]
    spans = [np.stack([_span(key, 82 + 10 * m + i, shortest=2) for i in range(MOST)], axis=1) for m in range(2)]
    return Clips(scenes=drawn, seen=spans[0] & there & (sort != 3), heard=spans[1] & there & (sort != 2))


def segmented(seed: int, split: str, indices: NDArray[np.int64], *, seconds: int = 5) -> Clips:
    """One to three objects of different shapes are seen all the time; the first is the only one heard."""
    drawn = _objects(seed, f"segmented/{split}", indices, shares=(0.2, 0.5, 0.3))
    seen = np.repeat((np.arange(MOST) < drawn.count[:, None])[:, :, None], seconds, axis=2)
    heard = np.zeros_like(seen)
    heard[:, 0] = True
    return Clips(scenes=drawn, seen=seen, heard=heard)


def asked_about(seed: int, split: str, indices: NDArray[np.int64]) -> Clips:
    """Two or three objects of different shapes; each is seen all the time or (one in five) never, and sounds all the
    time, in a span, or (one in four) never."""
    key = draws.keys(seed, f"asked/{split}", indices)
    drawn = _objects(seed, f"asked/{split}", indices, shares=(0.0, 0.5, 0.5))
    there = (np.arange(MOST) < drawn.count[:, None])[:, :, None]
    shown = (draws.uniform(key, 81, MOST) >= 0.2)[:, :, None]
    sort = draws.integers(key, 82, 4, MOST)[:, :, None]
    span = np.stack([_span(key, 83 + i, shortest=2) for i in range(MOST)], axis=1)
    heard = np.where(sort == 0, False, np.where(sort == 1, True, span))
    return Clips(scenes=drawn, seen=np.repeat(there & shown, SECONDS, axis=2), heard=heard & there)


def frames(clips: Clips, image_size: int = 32) -> render.Pictures:
    """``[clips, seconds, image_size, image_size, 3]`` uint8: one picture a second, each with noise of its own."""
    shown, _ = _shown(clips)
    return render.pictures(shown, image_size).reshape(len(clips), clips.seconds, image_size, image_size, 3)


def masks(clips: Clips, image_size: int = 32) -> render.Masks:
    """``[clips, seconds, image_size, image_size]``: pixels of objects that are both seen and heard in that second."""
    shown, which = _shown(clips)
    each = render.masks(shown, image_size).reshape(len(clips), clips.seconds, MOST, image_size, image_size)
    both = np.take_along_axis(clips.seen & clips.heard, which, axis=1).transpose(0, 2, 1)
    return np.any(each & both[..., None, None], axis=2)


def waves(clips: Clips, *, rate: int = sound.RATE) -> sound.Wave:
    """``[clips, seconds * rate]``; see `sound.waves`."""
    return sound.waves(clips.scenes, clips.heard, rate=rate)


def spans(present: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Runs ``[from, to)`` of seconds that are true in ``[seconds]``."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], present, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2])]


def _objects(
    seed: int, split: str, indices: NDArray[np.int64], *, shares: tuple[float, float, float] = (0.0, 1.0, 0.0)
) -> Scenes:
    """Scenes whose objects all have different shapes."""
    drawn = scenes.of_anything(seed, f"clips/{split}", indices, shares=shares)
    steps = 1 + draws.integers(drawn.key, 70, 4, MOST)
    shape = (drawn.shape[:, :1] + np.cumsum(np.concatenate([np.zeros_like(steps[:, :1]), steps[:, 1:]], 1), 1)) % 10
    return replace(drawn, shape=shape)


def _with_first(drawn: Scenes, shape: NDArray, color: NDArray, *, count: NDArray) -> Scenes:
    """The scenes with this first object; the others keep their distance in shape."""
    shapes = (shape[:, None] + drawn.shape - drawn.shape[:, :1]) % len(SHAPES)
    colors = np.concatenate([color[:, None], drawn.color[:, 1:]], axis=1)
    return replace(drawn, shape=shapes, color=colors, count=np.minimum(count, drawn.count))


def _span(key: draws.Keys, channel: int, *, shortest: int) -> Spans:
    """``[clips, seconds]``: true in one run of at least `shortest` seconds, at most all."""
    length = shortest + draws.integers(key, channel, SECONDS - shortest + 1)[:, 0]
    begin = (draws.uniform(key, channel + 100)[:, 0] * (SECONDS - length + 1)).astype(np.int64)
    time = np.arange(SECONDS)
    return (time >= begin[:, None]) & (time < (begin + length)[:, None])


def _shown(clips: Clips) -> tuple[Scenes, NDArray[np.int64]]:
    """A scene a second with the visible objects in front, and which they were ``[clips, 3, seconds]``."""
    which = np.argsort(~clips.seen, axis=1, kind="stable")
    rows = np.repeat(np.arange(len(clips)), clips.seconds)
    order = which.transpose(0, 2, 1).reshape(-1, MOST)
    second = np.tile(np.arange(clips.seconds, dtype=np.uint64), len(clips))
    fields = {}
    for name in ("shape", "fill", "color", "size", "x", "y", "radius", "turn", "fill_turn", "phase"):
        value = getattr(clips.scenes, name)[rows]
        fields[name] = np.take_along_axis(value, order.reshape(order.shape + (1,) * (value.ndim - 2)), axis=1)
    key = draws.mix(clips.scenes.key[rows] + second)
    return replace(clips.scenes, key=key, count=clips.seen.sum(1).reshape(-1), **fields), which
