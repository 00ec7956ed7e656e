"""Channels kept, work and overlap, by hand."""

from __future__ import annotations

import pytest
import torch

from perdure.families.rehearsal import modularity
from perdure.models import gated_resnet


def network():
    return gated_resnet.load(gated_resnet.Config(seed=0))


def test_a_whole_pass_costs_the_published_number():
    net = network()
    (whole,) = modularity.multiply_accumulates(net, torch.ones(1, 256), height=32, width=32, gates="none")
    assert whole / 1e6 == pytest.approx(72.19, abs=0.005)
    (official,) = modularity.multiply_accumulates(net, torch.ones(1, 256), height=32, width=32, gates="map")
    assert official / 1e6 == pytest.approx(77.43, abs=0.005)


def test_work_follows_from_the_counts_of_each_image():
    net = network()
    actions = torch.zeros(2, 256)
    for gate, kept in enumerate((10, 20, 30, 40)):
        actions[0, 64 * gate : 64 * gate + kept] = 1
    found = modularity.multiply_accumulates(net, actions, height=32, width=32, gates="none")
    fixed = 27 * 32 * 32 * 32 + 4 * 9 * 32 * 32 * 32 * 32
    convolutions = 9 * 256 * (32 * 10 + 10 * 20 + 20 * 30 + 30 * 40) + 256 * 32 * 20
    assert found.tolist() == [fixed + convolutions + 40 * 10, fixed]


def test_keep_ratios_are_shares_of_each_gate():
    actions = torch.tensor([[1.0, 0, 1, 1, 1, 0]])
    assert modularity.keep_ratios(actions, (0, 2, 6)).tolist() == [[0.5, 0.75]]


def test_overlap_is_the_jaccard_index_of_used_channels():
    # Class 0 uses {0, 1}, class 1 uses {1, 2}: 1 of 3 shared. Class 2 uses none.
    activity = torch.tensor([[0.9, 0.6, 0.1], [0.0, 1.0, 0.7], [0.0, 0.5, 0.0]])
    table = modularity.overlap(activity)
    torch.testing.assert_close(table[0], torch.tensor([1.0, 1 / 3, 0.0], dtype=torch.float64))
    assert table[2, 2] == 1


def test_means_are_taken_by_class():
    labels, means = modularity.by_class(torch.tensor([[0.0], [1.0], [4.0]]), torch.tensor([3, 3, 1]))
    assert labels.tolist() == [1, 3] and means.tolist() == [[4.0], [0.5]]


def test_correlation_counts_each_pair_of_classes_once():
    a = torch.tensor([[1.0, 0.1, 0.2], [0.1, 1.0, 0.3], [0.2, 0.3, 1.0]])
    assert modularity.correlation(a, 2 * a) == pytest.approx(1.0)
    assert modularity.correlation(a, -a) == pytest.approx(-1.0)
    assert modularity.correlation(a, torch.ones(3, 3)) is None
    assert modularity.correlation(a[:1, :1], a[:1, :1]) is None


def test_dead_and_always_on_channels_are_named():
    found = modularity.usage(torch.tensor([[0.0, 1, 1], [0, 1, 0]]))
    assert found == {"dead": [0], "always_on": [1]}
