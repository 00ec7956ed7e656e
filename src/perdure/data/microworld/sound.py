"""Sounds of the world: a shape has a timbre, a color a pitch.

Knows harmonics, waves and their noise. Does not know clips, pictures, files or how sound is analysed. Sines are made by
operations that IEEE 754 rounds exactly, so that a sample depends on (seed, split, index) alone.
"""

from __future__ import annotations

import wave as wave_format
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perdure.data.microworld import draws
from perdure.data.microworld.scenes import COLORS, SHAPES, Scenes

Wave = NDArray[np.float32]
Heard = NDArray[np.bool_]

RATE = 32_000
"""Samples a second, unless another rate is asked for."""
PITCHES = (200.0, 269.0, 362.0, 487.0, 655.0, 882.0, 1187.0, 1597.0)
"""Hertz of the lowest harmonic, by color: seven steps over three octaves."""
TIMBRES = (
    (1, 0, 0, 0, 0, 0, 0, 0),  # circle: a pure tone
    (12, 0, 4, 0, 2.4, 0, 1.7, 0),  # square: odd harmonics
    (9, 0, 1, 0, 0.36, 0, 0.18, 0),  # triangle: odd and soft
    (8, 4, 2.7, 2, 1.6, 1.3, 1.1, 1),  # star: all of them
    (2, 0, 0, 2, 0, 0, 2, 0),  # cross
    (1, 1, 0, 0, 0, 0, 0, 0),  # ring: tone and octave
    (1, 3, 2, 0, 0, 0, 0, 0),  # crescent: a weak ground
    (1, 0, 0, 0, 0, 2, 0, 2),  # diamond: two high ones
    (2, 2, 2, 2, 0, 0, 0, 0),  # heart
    (1, 0, 0, 0, 3, 3, 3, 3),  # arrow: bright
)
"""Amplitudes of the harmonics 1 to 8, by shape; only their ratios matter."""
DETUNING = 0.015
"""Largest deviation of a pitch, as a share of it."""
UNEVENNESS = 0.25
"""Largest deviation of a harmonic's amplitude, as a share of it."""
LOUDNESS = (0.08, 0.2)
"""Root mean square of an object's sound."""
NOISE = (0.001, 0.01)
"""Standard deviation of the noise under every clip."""


def waves(scenes: Scenes, heard: Heard, *, rate: int = RATE) -> Wave:
    """``[scenes, seconds * rate]`` in [-1, 1]: the objects that sound, second by second, and a little noise.

    Args:
        heard: ``[scenes, 3, seconds]`` which objects sound in which second.
        rate: samples a second.
    """
    return np.stack([_wave(scenes, heard, row, rate) for row in range(len(scenes))])


def quantized(wave: Wave) -> NDArray[np.int16]:
    """16-bit samples."""
    return np.clip(np.floor(wave * np.float32(32767) + np.float32(0.5)), -32768, 32767).astype(np.int16)


def write_wav(path: Path, wave: Wave, *, rate: int = RATE) -> Path:
    """A mono 16-bit ``.wav`` file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave_format.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(quantized(wave).astype("<i2").tobytes())
    return path


def sine(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """sin(2 pi turns), to 4e-6: a polynomial, since a library's sine differs from machine to machine."""
    turns = turns - np.floor(turns + 0.5)  # -1/2 .. 1/2
    folded = np.where(turns > 0.25, 0.5 - turns, np.where(turns < -0.25, -0.5 - turns, turns))
    x = folded * 6.283185307179586
    s = x * x
    return x * (1 - s / 6 * (1 - s / 20 * (1 - s / 42 * (1 - s / 72))))


def _wave(scenes: Scenes, heard: Heard, row: int, rate: int) -> Wave:
    seconds = heard.shape[2]
    key = scenes.key[row : row + 1]
    level = NOISE[0] + (NOISE[1] - NOISE[0]) * draws.uniform(key, 60)[0, 0]
    total = level * draws.normal(key, 61, seconds * rate)[0].astype(np.float64)
    total = total.reshape(seconds, rate)
    for i in range(scenes.count[row]):
        when = np.flatnonzero(heard[row, i])
        if len(when):
            total[when] += _tone(key, i, int(scenes.shape[row, i]), int(scenes.color[row, i]), when, rate)
    return np.clip(total, -1, 1).astype(np.float32).reshape(-1)


def _tone(key: draws.Keys, i: int, shape: int, color: int, when: NDArray[np.int64], rate: int) -> NDArray[np.float64]:
    """``[seconds, rate]`` of the i-th object's sound in the seconds `when`."""
    assert shape < len(SHAPES) == len(TIMBRES) and color < len(COLORS) == len(PITCHES)
    drawn = draws.uniform(key, 64 + i, 18)[0]
    pitch = PITCHES[color] * (1 + DETUNING * (2 * drawn[0] - 1))
    amplitude = np.asarray(TIMBRES[shape], np.float64) * (1 + UNEVENNESS * (2 * drawn[2:10] - 1))
    amplitude[pitch * np.arange(1, 9) > 0.45 * rate] = 0  # what the rate cannot hold
    loudness = LOUDNESS[0] + (LOUDNESS[1] - LOUDNESS[0]) * drawn[1]
    amplitude *= loudness / np.sqrt(0.5 * (amplitude * amplitude).sum())
    time = (when[:, None] * rate + np.arange(rate)) / rate
    tone = np.zeros(time.shape)
    for harmonic in np.flatnonzero(amplitude):
        tone += amplitude[harmonic] * sine(pitch * (harmonic + 1) * time + drawn[10 + harmonic])
    return tone
