"""Shared losses in numbers to follow by hand."""

import pytest
import torch

from perdure.layers.losses import distillation, local_cross_entropy


def test_old_columns_change_neither_loss_nor_gradient():
    labels = torch.tensor([2, 3])
    logits = torch.tensor([[5.0, 1, 2, 0], [9, 9, 1, 1]], requires_grad=True)
    moved = (logits.detach() + torch.tensor([7.0, -3, 0, 0])).requires_grad_()
    first, second = (local_cross_entropy(each, labels, own=range(2, each.shape[1])) for each in (logits, moved))
    first.backward(), second.backward()
    assert first.item() == second.item()
    assert torch.equal(logits.grad, moved.grad)
    assert torch.equal(logits.grad[:, :2], torch.zeros(2, 2))


def test_two_equal_logits_lose_log_two():
    assert local_cross_entropy(torch.zeros(1, 5), torch.tensor([4]), own=(3, 4)).item() == pytest.approx(0.693147)


def test_distillation_of_equal_logits_is_zero():
    logits = torch.randn(3, 4)
    assert distillation(logits, logits + 5).item() == pytest.approx(0, abs=1e-6)


def test_distillation_by_hand():
    # teacher (2 ln 3, 0) at T = 2: (.75, .25); student: (.5, .5)
    # KL = .75 ln 1.5 + .25 ln .5 = .130812; times T^2 = 4
    teacher = torch.tensor([[2 * 1.0986123, 0.0]])
    assert distillation(torch.zeros(1, 2), teacher).item() == pytest.approx(4 * 0.130812, abs=1e-5)
