"""Whether tests are among what was learned: the same bytes, nearly the same picture, or the same split twice.

Knows examples of all tasks and what they hold. Does not know methods, nor what the pictures show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from PIL.Image import Image

from perdure.auditing.finding import Finding, Subject
from perdure.errors import DataError, UnreadableExample
from perdure.images import open_image
from perdure.streams.contents import digest
from perdure.types import Example, Examples

MOST = 20_000
"""Examples of each side that are looked at, spread evenly."""
NEAR = 6
"""Bits of 64 in which perceptual hashes of near copies may differ."""
ALIKE, ALIKE_IN_COLOR = 0.99, 0.95
"""Correlations at 16 x 16 pixels, of gray levels and of colors, from which such a pair is a near copy: saved again,
resized, brighter. Crops, mirrored pictures and gray copies of colored ones are not found."""
SHOWN = 3
Named = tuple[int, Example]


def tests_in_training(it: Subject) -> Finding:
    """The same bytes in training and test, whatever their names, in any two tasks."""
    check, done = "no test is among what was learned", "digests of all inputs compared over all tasks"
    learned, tests = _learned(it), _tests(it)
    if not learned or not tests:
        return Finding(check, done, "nothing is learned from examples, or nothing is tested", "not applicable")
    try:
        found = _same_bytes(learned, tests)
    except DataError as gone:
        return Finding(check, done, str(gone), "not applicable")
    return _copies(check, f"{done} ({_counts(it, learned, tests)})", found, len(tests), "the same")


def nearly_tests_in_training(it: Subject) -> Finding:
    """Nearly the same picture: perceptual hashes, and where these agree the pixels."""
    check = "no test is nearly a picture that was learned"
    done = f"perceptual hashes (pHash, at most {NEAR} of 64 bits) and then thumbnails compared over all tasks"
    learned, tests = ([each for each in part if "image" in each[1].inputs] for part in (_learned(it), _tests(it)))
    if not learned or not tests:
        return Finding(check, done, "no pictures are learned, or none are tested", "not applicable")
    if find_spec("imagehash") is None:
        return Finding(check, done, 'needs imagehash: pip install "perdure[audit]"', "not applicable")
    known, of_known = _looks(learned)
    seen, of_tests = _looks(tests)
    found: dict[int, tuple[int, str, int, str]] = {}
    for start in range(0, len(of_tests), 256):
        distance = (64 - seen.signs[start : start + 256] @ known.signs.T) / 2
        for i, j in zip(*np.nonzero(distance <= NEAR)):
            (task, test), (other_task, other) = of_tests[start + i], of_known[j]
            near = seen.gray[start + i] @ known.gray[j] >= ALIKE
            near = near and seen.color[start + i] @ known.color[j] >= ALIKE_IN_COLOR
            if start + i not in found and near and digest(_inputs(test)) != digest(_inputs(other)):
                found[start + i] = (task, test.id, other_task, other.id)
    skipped = len(learned) + len(tests) - len(of_known) - len(of_tests)
    unread = f"; {skipped} could not be opened" if skipped else ""
    return _copies(
        check, f"{done} ({_counts(it, learned, tests)}{unread})", list(found.values()), len(tests), "nearly the same"
    )


def validation_is_test(it: Subject) -> Finding:
    """A setting that is chosen on validation examples is chosen on the test, if these are the same."""
    check, done = "validation examples are no tests", "digests of both splits compared over all tasks"
    if it.evaluation.split == "validation":
        return Finding(check, done, "the run is tested on its validation examples (evaluate.split)", "by protocol")
    kept, tests = _spread(it, "validation"), _tests(it)
    if not kept or not tests:
        return Finding(check, done, "the stream has no validation examples", "not applicable")
    try:
        found = _same_bytes(kept, tests)
    except DataError as gone:
        return Finding(check, done, str(gone), "not applicable")
    return _copies(check, done, found, len(tests), "the same")


def _copies(check: str, done: str, found: Sequence[tuple[int, str, int, str]], count: int, how: str) -> Finding:
    if not found:
        return Finding(check, done, f"none of {count} tests", "passes")
    across = sum(a != b for a, _, b, _ in found)
    pairs = "; ".join(f"{test} (task {a + 1}) and {other} (task {b + 1})" for a, test, b, other in found[:SHOWN])
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    share = f"{len(found)} of {count} tests ({100 * len(found) / count:.2g} %), {across} across tasks"
    return Finding(check, done, f"{how}: {share}: {pairs}{more}", "leaks")


def _learned(it: Subject) -> list[Named]:
    return _spread(it, "train")


def _tests(it: Subject) -> list[Named]:
    return _spread(it, it.evaluation.split)


def _spread(it: Subject, split: str) -> list[Named]:
    """(index of the task, example) of all tasks, evenly spread where they are more than `MOST`."""
    total = sum(len(getattr(task, split)) for task in it.stream)
    return [pair for task in it.stream for pair in _of(task.index, getattr(task, split), max(total / MOST, 1.0))]


def _of(index: int, examples: Examples, step: float) -> Iterator[Named]:
    return ((index, examples[int(i * step)]) for i in range(int(len(examples) / step)))


def _counts(it: Subject, learned: Sequence[Named], tests: Sequence[Named]) -> str:
    whole = sum(len(task.train) for task in it.stream)
    asked = sum(len(getattr(task, it.evaluation.split)) for task in it.stream)
    of = f" of {whole} and {asked}" if len(learned) + len(tests) < whole + asked else ""
    return f"{len(learned)} learned, {len(tests)} tested{of}"


def _same_bytes(learned: Sequence[Named], tests: Sequence[Named]) -> list[tuple[int, str, int, str]]:
    """Tests whose inputs are those of an example: task and id of each, then of the example.

    Raises:
        DataError: a file is gone.
    """
    known = {digest(_inputs(example)): (task, example.id) for task, example in learned}
    return [(task, e.id, *known[mark]) for task, e in tests if (mark := digest(_inputs(e))) in known]


def _inputs(example: Example) -> Example:
    """What of an example is looked at: the picture, where there is one."""
    picture = {"image": example.inputs["image"]} if "image" in example.inputs else example.inputs
    return Example(id=example.id, inputs=picture)


class _Looks(NamedTuple):
    """Of n pictures: signs of perceptual hashes [n, 64], thumbnails of length 1, gray [n, 256] and colored [n, 768]."""

    signs: np.ndarray
    gray: np.ndarray
    color: np.ndarray


def _looks(examples: Sequence[Named]) -> tuple[_Looks, list[Named]]:
    """Of the examples that can be opened, and these."""
    import imagehash

    opened, signs = [], np.empty((len(examples), 64), dtype=np.float32)
    gray, color = (np.empty((len(examples), size), dtype=np.float32) for size in (256, 768))
    for named in examples:
        try:
            image = open_image(named[1].inputs["image"])
        except UnreadableExample:
            continue
        row, plain = len(opened), image.convert("L")
        signs[row] = np.where(imagehash.phash(plain).hash.reshape(-1), 1.0, -1.0)
        gray[row], color[row] = _thumbnail(plain), _thumbnail(image.convert("RGB"))
        opened.append(named)
    return _Looks(*(values[: len(opened)] for values in (signs, gray, color))), opened


def _thumbnail(image: Image) -> np.ndarray:
    """16 x 16 pixels less their mean color, with a length of 1."""
    pixels = np.asarray(image.resize((16, 16)), dtype=np.float32).reshape(256, -1)
    pixels = (pixels - pixels.mean(axis=0)).reshape(-1)
    return pixels / max(float(np.linalg.norm(pixels)), 1e-6)
