"""The cosine classifier in image space and its fusion with the text classifier."""

import pytest
import torch

from perdure.families.clip.classifier import widen
from perdure.methods.mg_clip.visual import cosine_scores, fuse, visual_loss

# Probabilities (.9, .1) of the text classifier; cosines (.5, .75) of the visual one.
TEXT = torch.tensor([[0.9, 0.1]]).log()
COSINES = torch.tensor([[0.5, 0.75]])


def test_fusion_by_hand_with_the_second_softmax():
    # softmax(.9, .1) = .689974; softmax(.5, .75) = .437823; (1 * .689974 + 4 * .437823) / 5 = .488254
    scores = fuse(TEXT, COSINES)
    assert scores[0, 0].item() == pytest.approx(0.488254, abs=3e-6)
    assert scores.argmax().item() == 1


def test_fusion_by_hand_with_one_softmax():
    scores = fuse(TEXT, COSINES, text_softmax="single")
    assert scores[0, 0].item() == pytest.approx(0.530259, abs=3e-6)
    assert scores.argmax().item() == 0


def test_fusion_weights_need_not_sum_to_one():
    assert torch.equal(fuse(TEXT, COSINES, text_weight=2.0, visual_weight=0.0), TEXT.softmax(1).softmax(1))


def test_scaling_a_row_changes_no_score():
    features, weight = torch.randn(3, 4), torch.randn(2, 4)
    scaled = weight * torch.tensor([[3.0], [1.0]])
    assert torch.allclose(cosine_scores(features, weight), cosine_scores(features, scaled), atol=1e-6)


def test_classes_without_a_row_get_probability_zero():
    wide = widen(COSINES, classes=3)
    assert torch.allclose(wide.softmax(1), torch.tensor([[0.437823, 0.562177, 0.0]]), atol=1e-6)


def test_local_loss_over_new_rows_equals_the_loss_over_all_rows():
    features, old, new = torch.randn(5, 4), torch.randn(2, 4), torch.randn(3, 4)
    labels = torch.tensor([2, 3, 4, 2, 3])
    everything = cosine_scores(features, torch.cat([old, new]))[:, 2:]
    expected = torch.nn.functional.cross_entropy(everything, labels - 2)
    assert torch.allclose(visual_loss(new, features, labels - 2), expected)
