"""MNIST-360 against the published code: batches, angles and pixels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from recorded import load

from perdure.settings.config import Named
from perdure.streams import mnist360
from perdure.streams.transformed import Rotate


def schedule(file: Path) -> None:
    a = load(file)
    counts, size = a["counts_train"][:9].tolist(), int(a["batch_size"])
    plan = check_plan(a, counts, size)
    assert sum(step.n0 + step.n1 for step in plan) == int(a["n_samples"])
    number = Counter()
    first, last = [], 0.0
    for step in plan:
        first.append(mnist360.train_angle(step.first, number[step.first], counts[step.first]))
        number[step.first] += step.n0
        number[step.second] += step.n1
        label, n = (step.second, step.n1) if step.n1 else (step.first, step.n0)
        last = mnist360.train_angle(label, number[label] - 1, counts[label])
        assert n
    np.testing.assert_allclose(first, a["first_degree_each_step"], atol=1e-6)
    np.testing.assert_allclose(last, a["last_degree"], atol=1e-6)
    check_test_steps(a, a["counts_test"][:9].tolist(), size)


def small(file: Path) -> None:
    a = load(file)
    labels = a["train_labels"]
    counts, size = [int((labels == c).sum()) for c in range(9)], int(a["batch_size"])
    assert counts == a["counts_train"][:9].tolist()
    plan = check_plan(a, counts, size)
    recorded = iter(a["chunk_index"].tolist())
    positions = [np.flatnonzero(labels == c).tolist() for c in range(9)]
    settings = config(size)
    order, angles = mnist360.train_order(
        plan, positions, settings, lambda _, __, n, ___: [next(recorded) for _ in range(n)]
    )
    np.testing.assert_array_equal(labels[order], a["labels"])
    np.testing.assert_allclose(np.array(angles) % 360, a["degrees"] % 360, atol=1e-9)
    for i, expected in enumerate(a["images"]):
        np.testing.assert_array_equal(Rotate(angles[i])(a["train_images"][order[i]]), expected)
    check_test(a, size)


def check_test(a: dict, size: int) -> None:
    """Which images are tested, at which angle: the recorded draws, less what is cut off."""
    labels = a["test_labels"]
    positions = [np.flatnonzero(labels == c).tolist() for c in range(9)]
    recorded = iter(a["test_index"].tolist())
    order, angles = mnist360.test_order(
        positions, config(size), lambda _, __, n, ___: [next(recorded) for _ in range(n)]
    )
    assert next(recorded, None) is None
    check_test_steps(a, [len(own) for own in positions], size)
    wanted, degrees, start = [], [], 0
    for (label, n), end in zip(a["test_steps"].tolist(), a["test_draws_cum"].tolist()):
        wanted += [positions[label][i] for i in a["test_index"][start : start + n]]
        degrees += a["test_degrees"][start : start + n].tolist()
        start = end
    assert order == wanted
    np.testing.assert_allclose(angles, degrees, atol=1e-9)


def check_plan(a: dict, counts: list[int], size: int) -> list[mnist360.Step]:
    found = [mnist360.chunk_sizes(count, 6) for count in counts]
    np.testing.assert_array_equal(found, a["chunk_sizes"])
    plan = mnist360.schedule(counts, size)
    np.testing.assert_array_equal(np.array(plan), a["steps"])
    return plan


def check_test_steps(a: dict, counts: list[int], size: int) -> None:
    found = [(c, min(size, n - start)) for c, n in enumerate(counts) for start in range(0, n, size)]
    np.testing.assert_array_equal(found, a["test_steps"])


def config(size: int) -> mnist360.Config:
    data = Named(place="data", name="mnist")
    return mnist360.Config(data=data, batch_size=size, official_sampling=True)
