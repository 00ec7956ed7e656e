"""Continual metrics, by numbers that a reader can follow and against continuum's own."""

import numpy as np
import pytest

from perdure.metrics import continual

NAN = float("nan")

# Three tasks. Task 0 falls 90 -> 80 -> 70, task 1 falls 60 -> 50, task 2 is learned to 30.
THREE = np.array([[90, NAN, NAN], [80, 60, NAN], [70, 50, 30]])


def test_average_is_the_mean_of_the_accuracies_over_seen_tasks():
    assert continual.step_accuracies(THREE) == [90, 70, 50]
    assert continual.average_accuracy(THREE) == 70
    assert continual.last_accuracy(THREE) == 50


def test_with_counts_every_test_example_weighs_alike():
    counts = np.array([[30, 0, 0], [30, 10, 0], [30, 10, 10]])
    steps = continual.step_accuracies(THREE, counts=counts)
    assert steps == [90, (30 * 80 + 10 * 60) / 40, (30 * 70 + 10 * 50 + 10 * 30) / 50]  # 90, 75, 58
    assert continual.average_accuracy(THREE, counts=counts) == pytest.approx((90 + 75 + 58) / 3)
    assert continual.last_accuracy(THREE, counts=counts) == 58


def test_forgetting_is_the_best_earlier_accuracy_less_the_final_one():
    assert continual.forgetting_per_task(THREE) == [90 - 70, 60 - 50]
    assert continual.forgetting(THREE) == 15


def test_backward_transfer_divides_by_past_tasks_or_by_all():
    assert continual.backward_transfer(THREE) == (-20 - 10) / 2
    assert continual.backward_transfer(THREE, over="all") == (-20 - 10 + 0) / 3


def test_forward_transfer_compares_with_the_untrained_model():
    matrix = np.array([[90, 25, NAN], [80, 60, 40], [70, 50, 30]])
    initial = np.array([10, 20, 30])
    assert continual.forward_transfer(matrix, initial=initial) == ((25 - 20) + (40 - 30)) / 2
    assert continual.forward_transfer(matrix, initial=None) is None
    assert continual.forward_transfer(THREE, initial=initial) is None  # not measured before learning


def test_continuum_compat_stops_its_sums_early():
    # k = 3. forgetting: j = 0 only, max over row 0 = 90, less 70, over k-1 = 2.
    # bwt: (i, j) = (2, 0) only: 70 - 90, over 3 pairs.  fwt: (80 + 70 + 50) / 3 pairs.
    assert continual.continuum_compat(THREE) == pytest.approx({"forgetting": 10, "bwt": -20 / 3, "fwt": 200 / 3})
    assert continual.continuum_compat(THREE[:2, :2]) == {"forgetting": 0, "bwt": 0, "fwt": 80}


def test_one_task_has_no_transfer_and_no_forgetting():
    one = np.array([[77.0]])
    assert continual.summary(one, initial=np.array([1.0])) == {
        "average": 77,
        "average_of_tasks": 77,
        "last": 77,
        "last_of_tasks": 77,
        "forgetting": None,
        "bwt": None,
        "fwt": None,
    }
    assert continual.continuum_compat(one) == {"forgetting": 0, "bwt": 0, "fwt": 0}
    assert continual.sefe(one) == {"MFT": 77, "MFN": 77, "MAA": 77, "BWT": 0}
    assert continual.sefe(one, bwt="excluding_last")["BWT"] is None
    assert continual.dynamos(one) == {"accuracy": 77, "bwt": None, "forgetting": None, "fwt": None}


def test_sefe_backward_transfer_has_two_conventions():
    assert continual.sefe(THREE) == pytest.approx({"MFT": 60, "MFN": 50, "MAA": 70, "BWT": 50 - 60})
    assert continual.sefe(THREE, bwt="excluding_last")["BWT"] == pytest.approx((50 - 60) * 3 / 2)


def test_dynamos_forgetting_counts_the_last_row_and_missing_cells_as_zero():
    rising = np.array([[50, 20, NAN], [55, 60, 25], [70, 40, 90]])
    assert continual.forgetting(rising) == ((55 - 70) + (60 - 40)) / 2
    found = continual.dynamos(rising, initial=np.array([9, 10, 11]))
    assert found["forgetting"] == ((70 - 70) + (60 - 40)) / 2
    assert found["fwt"] == ((20 - 10) + (25 - 11)) / 2
    assert found["accuracy"] == pytest.approx((70 + 40 + 90) / 3)


def test_what_was_not_measured_gives_none_instead_of_a_wrong_mean():
    only_current = np.diag([80.0, 60.0]) + np.array([[0, NAN], [NAN, 0]])
    assert continual.step_accuracies(only_current) == [80, None]
    assert continual.average_accuracy(only_current) is None
    assert continual.last_accuracy(only_current) is None
    assert continual.forgetting(only_current) is None
    assert continual.accuracy_when_learned(only_current) == 70


def test_rows_of_a_run_become_the_matrix():
    rows = [
        {"after": -1, "asked": 0, "n": 4, "values": {"accuracy": 25.0}},
        {"after": 0, "asked": 0, "n": 4, "values": {"accuracy": 75.0, "per_class_accuracy": {"0": 75.0}}},
        {"after": 1, "asked": 0, "n": 4, "values": {"accuracy": 50.0}},
        {"after": 1, "asked": 1, "n": 2, "values": {"accuracy": 100}},
        {"after": 1, "asked": 1, "n": 2, "values": {"accuracy": None}},
    ]
    found = continual.from_rows(rows, tasks=2, metric="accuracy")
    np.testing.assert_array_equal(found.matrix, [[75, NAN], [50, 100]])
    np.testing.assert_array_equal(found.initial, [25, NAN])
    np.testing.assert_array_equal(found.counts, [[4, 0], [4, 2]])
    assert continual.last_accuracy(found.matrix, counts=found.counts) == (4 * 50 + 2 * 100) / 6
    table = continual.from_rows(rows, tasks=2, metric="per_class_accuracy")
    assert np.isnan(table.matrix).all() and table.initial is None
