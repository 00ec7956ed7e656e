"""Weights are put together as their papers say; worked examples by hand."""

from __future__ import annotations

import pytest
import torch

from perdure.errors import CheckpointError
from perdure.layers import merging


def state(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values)}


def test_interpolation_takes_the_rest_from_the_tuned_weights():
    base = state(2.0) | {"mean": torch.tensor(0.0), "count": torch.tensor(1)}
    tuned = state(4.0) | {"mean": torch.tensor(1.0), "count": torch.tensor(7)}
    mixed = merging.interpolate(base, tuned, 0.8, names=["w"])
    assert mixed["w"].item() == pytest.approx(3.6)
    assert mixed["mean"].item() == 1
    assert mixed["count"].item() == 7
    assert merging.interpolate(base, tuned, 0.5)["mean"].item() == 0.5


def test_the_larger_change_wins_and_the_later_one_where_both_are_alike():
    assert merging.largest(state(1, -3), state(-2, 3))["w"].tolist() == [-2, 3]
    all_at_once = merging.largest(merging.largest(None, state(1, 5)), state(-2, 3))
    assert all_at_once["w"].tolist() == [-2, 5]


def test_ties_elects_the_sign_of_the_larger_mass():
    rows = torch.tensor([[4.0, 1.0, 0.0, 0.0, 0.0], [-2.0, 3.0, 0.0, 0.0, 0.0]])
    assert merging.ties_of_rows(rows, keep=0.4).tolist() == [4, 2, 0, 0, 0]


def test_running_averages_are_means():
    average = state(1)
    for count, value in enumerate((2.0, 6.0), 1):
        average = merging.running_average(average, state(value), count)
    assert average["w"].item() == 3


def test_other_names_or_shapes_are_refused_by_name():
    with pytest.raises(CheckpointError, match="'w'"):
        merging.task_vector(state(1), state(1, 2))
    with pytest.raises(CheckpointError, match="'b'"):
        merging.largest(state(1), state(1) | {"b": torch.zeros(1)})
