"""Whether tests are among what was learned: the same bytes, nearly the same picture, or the same split twice.

Knows examples of all tasks and what they hold. Does not know methods, nor what the pictures show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import numpy as np

from perdure.auditing.finding import Finding, Subject
from perdure.errors import DataError, UnreadableExample
from perdure.images import open_image
from perdure.streams.contents import digest
from perdure.types import Example, Examples

MOST = 20_000
"""Examples of each side that are looked at, spread evenly."""
NEAR = 6
"""Bits of 64 in which perceptual hashes of near copies may differ."""
ALIKE = 0.99
"""Correlation of gray levels at 16 x 16 pixels from which such a pair is a near copy: saved again, resized, brighter.
Crops and mirrored pictures are not found."""
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
    (known, looks, of_known), (marks, seen, of_tests) = _hashes(learned), _hashes(tests)
    found: dict[int, tuple[int, str, int, str]] = {}
    for start in range(0, len(marks), 256):
        distance = (64 - marks[start : start + 256] @ known.T) / 2
        for i, j in zip(*np.nonzero(distance <= NEAR)):
            (task, test), (other_task, other) = of_tests[start + i], of_known[j]
            near = seen[start + i] @ looks[j] >= ALIKE
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


def _hashes(examples: Sequence[Named]) -> tuple[np.ndarray, np.ndarray, list[Named]]:
    """Signs of perceptual hashes [n, 64], gray thumbnails of length 1 [n, 256], and the examples that can be opened."""
    import imagehash

    signs, looks, opened = [], [], []
    for task, example in examples:
        try:
            image = open_image(example.inputs["image"]).convert("L")
        except UnreadableExample:
            continue
        signs.append(np.where(imagehash.phash(image).hash.reshape(-1), 1.0, -1.0))
        gray = np.asarray(image.resize((16, 16)), dtype=np.float32).reshape(-1)
        gray -= gray.mean()
        looks.append(gray / max(float(np.linalg.norm(gray)), 1e-6))
        opened.append((task, example))
    shape = (np.array(signs, dtype=np.float32).reshape(-1, 64), np.array(looks, dtype=np.float32).reshape(-1, 256))
    return *shape, opened
