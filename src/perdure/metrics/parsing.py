"""F1 of the segments and events of one parsed video: what is heard, what is seen, what is both.

Knows maps of classes over segments, runs of segments, and how a predicted event hits a true one (Tian et al., Unified
Multisensory Perception, ECCV 2020). Does not know records or models; needs numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

Maps = np.ndarray
"""Presence of events: bool ``[classes segments]``."""
IOU_OF_A_HIT = 0.5


def segment_scores(predicted: Mapping[str, Maps], truth: Mapping[str, Maps]) -> dict[str, float]:
    """F1 of one video's segments: ``A``, ``V``, ``AV`` and ``Event@AV`` (audio and visual counts together).

    Args:
        predicted: bool ``[classes segments]`` under "audio" and "visual"; `truth`: the same.
    """
    return _scores(predicted, truth, lambda p, t: np.stack([(p & t).sum(1), (p & ~t).sum(1), (~p & t).sum(1)]))


def event_scores(predicted: Mapping[str, Maps], truth: Mapping[str, Maps]) -> dict[str, float]:
    """F1 of one video's events, as `segment_scores`."""
    return _scores(predicted, truth, event_counts)


def event_counts(predicted: Maps, truth: Maps) -> np.ndarray:
    """Hits, false alarms and misses of each class: ``[3 classes]``.

    A predicted run is a hit if its IoU with a true run of the class is at least 0.5; several may hit the same one.
    A true run that none hits is a miss.
    """
    counts = np.zeros((3, len(predicted)))
    for label, (p, t) in enumerate(zip(predicted, truth)):
        found, true = runs(p), runs(t)
        hit = [any(_iou(f, g) >= IOU_OF_A_HIT for g in true) for f in found]
        missed = [g for g in true if not any(_iou(f, g) >= IOU_OF_A_HIT for f in found)]
        counts[:, label] = sum(hit), len(hit) - sum(hit), len(missed)
    return counts


def runs(present: Bool[np.ndarray, " segments"]) -> list[tuple[int, int]]:
    """``(from, to)`` of each maximal run of ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], present.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _scores(predicted: Mapping[str, Maps], truth: Mapping[str, Maps], count: Any) -> dict[str, float]:
    audio, visual = (count(predicted[m], truth[m]) for m in ("audio", "visual"))
    both = count(predicted["audio"] & predicted["visual"], truth["audio"] & truth["visual"])
    parts = {"A": audio, "V": visual, "AV": both, "Event@AV": audio + visual}
    return {name: _f1(counts) for name, counts in parts.items()}


def _f1(counts: Float[np.ndarray, "3 classes"]) -> float:
    """Mean F1 over the classes that are there in prediction or truth; 1 if there are none."""
    hits, alarms, misses = counts
    total = 2 * hits + alarms + misses
    there = total > 0
    return float((2 * hits[there] / total[there]).mean()) if there.any() else 1.0


def _iou(a: tuple[int, int], b: tuple[int, int]) -> float:
    inter = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return inter / (a[1] - a[0] + b[1] - b[0] - inter)


def presence_map(events: Sequence[Sequence[int]], *, classes: int, segments: int) -> Maps:
    """Runs ``[class, from, to)`` as a map."""
    present = np.zeros((classes, segments), dtype=bool)
    for label, begin, end in events:
        present[label, begin:end] = True
    return present


def events_of(present: Maps) -> list[list[int]]:
    """A map as runs ``[class, from, to)``."""
    return [[label, begin, end] for label, row in enumerate(present) for begin, end in runs(row)]
