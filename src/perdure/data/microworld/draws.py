"""Random numbers as a function of a key: the same on every machine and in every order.

Knows a 64-bit mixing function (splitmix64) and what is drawn from it. Does not know what the numbers
mean. Only operations that IEEE 754 rounds exactly are used here and in the renderer, so that a pixel
depends on (seed, split, index) alone, not on the processor or the version of numpy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1


def keys(seed: int, split: str, indices: NDArray[np.int64]) -> Keys:
    """One 64-bit key ``[images]`` for each index of a split of the world with this seed."""
    root = seed & _WORD
    for letter in split.encode():
        root = (root * 0x100000001B3 + letter + 1) & _WORD
    return mix(mix(np.full(len(indices), root, np.uint64)) ^ indices.astype(np.uint64))


def mix(words: Keys) -> Keys:
    """splitmix64's finaliser: 64 well-mixed bits of each word."""
    z = words + np.uint64(_GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def words(key: Keys, channel: int, count: int = 1) -> Keys:
    """``[images, count]`` independent words; `channel` names the use, so that uses never share draws."""
    start = channel << 32
    counter = np.arange(start, start + count, dtype=np.uint64) * np.uint64(_GOLDEN)
    return mix(key[:, None] + counter[None, :])


def uniform(key: Keys, channel: int, count: int = 1) -> NDArray[np.float64]:
    """``[images, count]`` in [0, 1), on a grid of 2^-53."""
    return (words(key, channel, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(key: Keys, channel: int, below: int, count: int = 1) -> NDArray[np.int64]:
    """``[images, count]`` in 0 .. below - 1."""
    return (uniform(key, channel, count) * below).astype(np.int64)


def normal(key: Keys, channel: int, count: int) -> NDArray[np.float32]:
    """``[images, count]`` with mean 0 and variance 1: four 16-bit uniforms added, so never beyond 3.5."""
    drawn = words(key, channel, count)
    total = np.zeros(drawn.shape, np.int64)
    for shift in (0, 16, 32, 48):
        total += ((drawn >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)
    centred = (total - 131070).astype(np.float32)
    return centred * np.float32(1.7320508 / 65536)
