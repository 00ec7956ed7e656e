"""Ridge regression: the solutions and errors of plain solves, whatever way was taken to them."""

import pytest
import torch
from torch.nn import functional as F

from perdure.layers import ridge

RIDGES = tuple(10.0**power for power in range(-8, 9))


def rows(count, *, width, classes=3, scale=1.0, rank=None):
    generator = torch.Generator().manual_seed(count + width)
    features = scale * torch.randn(count, rank or width, generator=generator, dtype=torch.float64)
    if rank:
        features = features @ torch.randn(rank, width, generator=generator, dtype=torch.float64)
    return features, ridge.one_hot(torch.randint(classes, (count,), generator=generator), classes)


def same(features):
    return features


def plain_errors(features, targets, fit):
    one = torch.eye(features.shape[1], dtype=torch.float64)
    left, right = features[:fit], targets[:fit]
    weights = [torch.linalg.solve(left.T @ left + r * one, left.T @ right) for r in RIDGES]
    return torch.stack([F.mse_loss(features[fit:] @ w, targets[fit:]) for w in weights])


@pytest.mark.parametrize(("count", "width"), [(60, 200), (300, 40), (50, 40)])
def test_errors_are_those_of_a_solve_for_each_ridge(count, width):
    features, targets = rows(count, width=width, scale=30)
    fit = int(0.8 * count)
    found = ridge.errors(features, targets, RIDGES, fit=fit, expand=same)
    held_back = features[fit:] @ features[:fit].T
    one = torch.eye(fit, dtype=torch.float64)
    dual = [held_back @ torch.linalg.solve(features[:fit] @ features[:fit].T + r * one, targets[:fit]) for r in RIDGES]
    wanted = torch.stack([F.mse_loss(f, targets[fit:]) for f in dual])
    torch.testing.assert_close(
        found, wanted if fit <= width else plain_errors(features, targets, fit), rtol=1e-7, atol=0
    )


def test_one_factor_does_for_all_ridges_that_are_small_beside_the_sums(monkeypatch):
    factored, factor = [], ridge._factor
    monkeypatch.setattr(ridge, "_factor", lambda square, r: factored.append(r) or factor(square, r))
    features, targets = rows(300, width=40, scale=30)
    ridge.errors(features, targets, RIDGES, fit=240, expand=same)
    assert factored[0] == 1e-8 and len(factored) <= 6


def test_ridges_too_small_for_singular_sums_are_solved_by_eigenvalues():
    features, targets = rows(60, width=40, scale=1e4, rank=5)
    found = ridge.errors(features, targets, RIDGES, fit=48, expand=same)
    u, s, vt = torch.linalg.svd(features[:48], full_matrices=False)
    u, s, vt = u[:, :5], s[:5], vt[:5]
    weights = [vt.T @ ((s / (s**2 + r))[:, None] * (u.T @ targets[:48])) for r in RIDGES]
    wanted = torch.stack([F.mse_loss(features[48:] @ w, targets[48:]) for w in weights])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("strength", [1e-8, 1e-2, 1e3, 1e8])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e20])
def test_weights_have_the_residual_of_float64(strength, scale):
    features, targets = rows(100, width=40, scale=scale)
    sums = ridge.Sums()
    sums.add(features[:50], targets[:50], same)
    sums.add(features[50:], F.pad(targets[50:], (0, 2)), same)  # classes without an image
    weights = sums.solve(strength)
    assert sums.gram is not None and sums.cross is not None
    rest = sums.gram @ weights + strength * weights - sums.cross
    size = (sums.gram.norm() + strength) * weights.norm()
    assert weights.dtype == torch.float64 and float(rest.norm() / size) < 1e-14
    assert not weights[:, 3:].any()
    torch.testing.assert_close(sums.gram, features.T @ features, rtol=1e-12, atol=1e-12 * float(sums.gram.max()))


def test_sums_that_float32_cannot_factor_are_solved_all_the_same():
    features, targets = rows(100, width=40, rank=39, scale=10)
    sums = ridge.Sums()
    sums.add(features, targets, same)
    weights = sums.solve(1e-6)
    assert sums.gram is not None and sums.cross is not None
    one = torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close(weights, torch.linalg.solve(sums.gram + 1e-6 * one, sums.cross), rtol=1e-3, atol=1e-9)
