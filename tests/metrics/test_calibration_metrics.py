"""Calibration: by hand, on the edges of bins, with unknown classes, and where a number is not defined."""

import numpy as np
import pytest

from perdure import metrics
from perdure.metrics import calibration, classification
from perdure.types import Example, Query

QUERY = Query(kind="classify", candidates=("a", "b", "c"), offset=4)
P = np.array([[0.95, 0.03, 0.02], [0.10, 0.85, 0.05], [0.25, 0.20, 0.55], [0.35, 0.33, 0.32]])


def records(p, targets):
    examples = [Example(id=str(i), inputs={}, target=t) for i, t in enumerate(targets)]
    with np.errstate(divide="ignore"):
        return classification.records(np.log(p), examples, QUERY)


def test_four_examples_by_hand():
    rows = records(P, [4, 4, 6, 6])
    expected = {"accuracy": 50, "ece": 42.5, "mce": 85, "overconfidence": 17.5, "auroc_wrong": 75, "fpr95_wrong": 50}
    expected |= {"aurc": 100 / 3, "brier": 2.5376 / 4, "nll": 4.091149 / 4}
    for name, value in expected.items():
        assert metrics.compute(name, rows) == pytest.approx(value, abs=1e-5), name
    sure, right = np.array([0.95, 0.85, 0.55, 0.35]), np.array([True, False, True, False])
    assert calibration.equal_mass_error(sure, right, bins=2) == pytest.approx(0.225)
    assert calibration.average_precision(sure[right], sure[~right]) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_a_confidence_on_an_edge_belongs_to_the_lower_bin():
    assert calibration.bin_of(np.array([0.2, 0.6, 0.61, 1.0, 0.0]), bins=5).tolist() == [0, 2, 3, 4, -1]


def test_unknown_classes_count_as_no_answer_and_are_told_apart_by_confidence():
    rows = records(P, [4, 5, None, None])
    assert rows[2]["target"] is None and rows[2]["nll"] is None and rows[2]["brier"] is None
    assert metrics.compute("accuracy", rows) == 100 and metrics.compute("mean_per_class", rows) == 100
    assert metrics.compute("auroc_unknown", rows) == 100 and metrics.compute("fpr95_unknown", rows) == 0
    assert metrics.compute("aupr_known", rows) == 100 and metrics.compute("aupr_unknown", rows) == 100
    assert metrics.compute("ece", rows) == pytest.approx(100 * (0.05 + 0.15) / 2)
    assert metrics.compute("auroc_unknown", rows[:2]) is None
    doubled = classification.records(2 * np.log(P[:1]), [Example(id="x", inputs={}, target=4)], QUERY)
    assert doubled[0]["logit"] == pytest.approx(2 * np.log(0.95)) and doubled[0]["energy"] == pytest.approx(
        np.log((P[0] ** 2).sum())
    )


def test_what_is_not_defined_is_null():
    empty = [name for name, entry in metrics.METRICS.items() if entry.module == "calibration"]
    assert all(metrics.compute(name, []) is None for name in empty)
    assert metrics.compute("auroc_wrong", records(P[:1], [4])) is None
    impossible = records(np.array([[1.0, 0.0, 0.0]]), [5])
    assert impossible[0]["nll"] is None and metrics.compute("nll", impossible) is None
    assert metrics.compute("brier", impossible) == 2
