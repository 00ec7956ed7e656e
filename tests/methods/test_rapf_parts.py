"""RAPF's Gaussians, hard pairs, hinge and adapter fusion in small numbers."""

import pytest
import torch

from perdure.methods.rapf.fusion import fuse_adapters
from perdure.methods.rapf.gaussians import (
    cholesky_factors,
    class_statistics,
    hard_pairs,
    pair_hinge,
    sample,
    shrink,
)


def test_statistics_are_the_mean_and_the_unbiased_covariance_with_a_ridge():
    features, labels = torch.tensor([[0.0, 0], [2, 0], [9, 9]]), torch.tensor([3, 3, 5])
    means, covariances = class_statistics(features, labels, range(3, 4))
    assert torch.equal(means, torch.tensor([[1.0, 0]]))
    assert torch.allclose(covariances[0], torch.tensor([[2.0001, 0], [0, 0.0001]]))


def test_a_class_with_one_image_has_the_ridge_alone():
    _, covariances = class_statistics(torch.ones(1, 3), torch.tensor([0]), range(1))
    assert torch.allclose(covariances[0], 1e-4 * torch.eye(3))


def test_shrinkage_adds_the_mean_variance_and_the_mean_nonzero_covariance():
    covariance = torch.tensor([[1.0, 0.5, 0], [0.5, 2, 0], [0, 0, 3]])
    expected = torch.tensor([[3.0, 1, 0.5], [1, 4, 0.5], [0.5, 0.5, 5]])
    assert torch.allclose(shrink(covariance), expected)


def test_shrinkage_of_a_diagonal_matrix_is_finite():
    assert torch.allclose(shrink(torch.eye(3)), 2 * torch.eye(3))


def test_samples_are_the_mean_plus_the_factor_times_noise():
    means = torch.tensor([[0.0, 0], [10, 20]])
    factors = cholesky_factors(torch.tensor([[[1.0, 0], [0, 1]], [[4, 2], [2, 2]]]), shrinkage=False)
    noise = torch.tensor([[[1.0, 1], [0, 0]], [[3, 4], [0, 1]]])
    drawn = sample(means, factors, torch.tensor([1, 0]), noise)
    # L of [[4, 2], [2, 2]] is [[2, 0], [1, 1]]: L (1, 1) = (2, 2)
    assert torch.allclose(drawn, torch.tensor([[12.0, 22], [10, 20], [3, 4], [0, 1]]))


def test_hard_pairs_are_ordered_by_old_class_then_new_class():
    texts = torch.tensor([[1.0, 0], [0, 1], [0, 0.9], [0.9, 0], [1.0, 0.1]])
    assert hard_pairs(texts, first=2, threshold=0.5).tolist() == [[0, 3], [0, 4], [1, 2]]
    assert hard_pairs(texts, first=2, threshold=0.01).shape == (0, 2)


def test_hinge_by_hand():
    texts = torch.tensor([[1.0, 0], [0.6, 0.8]])
    # e = (1, 0): .1 - 1 + .6 < 0; e = (.6, .8): .1 - .6 + 1 = .5; their mean is .25
    features = torch.tensor([[2.0, 0], [3, 4]])
    own, other = torch.tensor([0, 0]), torch.tensor([1, 1])
    assert pair_hinge(features, texts, own, other).item() == pytest.approx(0.25)


OLD = torch.tensor([[2.0, 0.3], [0.1, 1.0]], dtype=torch.float64)
NEW = torch.tensor([[1.0, 0.5], [0.4, 3.0]], dtype=torch.float64)


@pytest.mark.parametrize("mix_bias", [1.0, 1.5])
def test_a_bias_of_one_or_more_takes_the_new_adapter(mix_bias):
    assert torch.allclose(fuse_adapters(OLD, NEW, mix_bias=mix_bias), NEW)


def test_an_adapter_that_did_not_move_stays_and_has_no_nan():
    assert torch.equal(fuse_adapters(OLD, OLD.clone(), mix_bias=0.6), OLD)


def test_only_the_largest_change_is_taken_whole_without_bias():
    # The basis of a diagonal matrix is the identity up to signs, which the result does not depend on.
    old = torch.diag(torch.tensor([3.0, 2.0]))
    new = old + torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    # R = [[0, 1], [.5, 0]]: the entry .5 keeps half of its change
    assert torch.allclose(fuse_adapters(old, new, mix_bias=0.0), old + torch.tensor([[0.0, 1], [0.25, 0]]))


def test_the_result_does_not_depend_on_the_signs_of_singular_vectors(monkeypatch):
    expected = fuse_adapters(OLD, NEW, mix_bias=0.5)
    svd = torch.linalg.svd

    def flipped(matrix, **options):
        left, singular, right = svd(matrix, **options)
        signs = torch.tensor([-1.0, 1.0], dtype=matrix.dtype)
        return left * signs, singular, right * signs[:, None]

    monkeypatch.setattr(torch.linalg, "svd", flipped)
    assert torch.allclose(fuse_adapters(OLD, NEW, mix_bias=0.5), expected)
