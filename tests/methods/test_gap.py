"""The gap measure and the rule that chooses the number of epochs, in numbers to follow by hand."""

import pytest
import torch

from perdure.errors import TrainingError
from perdure.methods.mg_clip.gap import gap_left, measure_gap, select_epochs

# Rows as image features and the unit vectors as texts make these numbers the logits themselves.
LOGITS = torch.tensor([[10.0, 4, 6], [2, 8, 2], [1, 1, 7]])


def test_gap_is_the_mean_of_batch_means():
    gap = measure_gap(LOGITS, torch.eye(3), torch.tensor([0, 1, 2]), batch_size=2)
    assert gap.positive == pytest.approx((9 + 7) / 2)
    assert gap.negative == pytest.approx((3.5 + 1) / 2)


def test_one_batch_weighs_all_images_alike():
    gap = measure_gap(LOGITS, torch.eye(3), torch.tensor([0, 1, 2]), batch_size=3)
    assert gap.positive == pytest.approx(25 / 3)
    assert gap.negative == pytest.approx(8 / 3)


def test_closed_form_equals_the_mean_over_the_logit_matrix():
    images, texts = torch.randn(7, 5).double(), torch.randn(4, 5).double()
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    logits = 100 * images @ texts.T
    own = torch.zeros(7, 4, dtype=torch.bool)
    own[torch.arange(7), labels] = True
    gap = measure_gap(images, texts, labels, scale=100, batch_size=7)
    assert gap.positive == pytest.approx(logits[own].mean().item())
    assert gap.negative == pytest.approx(logits[~own].mean().item())


def test_one_class_has_no_negative_pairs():
    assert measure_gap(LOGITS, torch.ones(1, 3), torch.zeros(3, dtype=torch.long), batch_size=2).negative == 0


def test_centroid_gap_is_the_distance_of_the_means():
    images, texts = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[-1.0, 0], [0, -1]])
    gap = measure_gap(images, texts, torch.tensor([0, 1]), batch_size=2)
    assert gap.centroid == pytest.approx(2**0.5)


@pytest.mark.parametrize(
    ("negatives", "epochs"),
    [([19.0, 18.1, 17.9], 2), ([17.9], 1), ([19.0] * 10, 10), ([18.0, 17.9], 1), ([18.0, 18.0, 22.1], 2)],
)
def test_epochs_before_the_gap_is_left_are_kept(negatives, epochs):
    assert select_epochs(20.0, negatives) == epochs


def test_exactly_ten_percent_does_not_leave_the_gap():
    assert not gap_left(20.0, 18.0, tolerance=0.1)
    assert gap_left(20.0, 17.999, tolerance=0.1)


def test_a_negative_start_can_be_left_too():
    assert gap_left(-20.0, -23.0, tolerance=0.1)


def test_a_start_of_zero_is_an_error():
    with pytest.raises(TrainingError, match="exactly 0"):
        gap_left(0.0, 1.0, tolerance=0.1)
