"""CLIPScore as a reward: numbers that can be followed by hand, ensembles, other resolutions, bad input."""

import pytest
import torch
from tiny_clip import tiny_model, tiny_tokenizer

from perdure.errors import RecipeError, TrainingError
from perdure.families.clip import clipscore
from perdure.families.test_time import losses
from perdure.models.clip import Clip, Tokenizer


def clip(**settings):
    return Clip(tiny_model(**settings), tokenizer=Tokenizer(tiny_tokenizer(), context_length=12))


def test_a_worked_reward_and_its_loss():
    # cosines .30 .20 .25 -> scores .75 .5 .625 -> minus their mean .625; logits 2 1 0
    scores = clipscore.clip_score(torch.tensor([[0.30, 0.20, 0.25]], dtype=torch.float64))
    torch.testing.assert_close(scores, torch.tensor([[0.75, 0.5, 0.625]], dtype=torch.float64))
    rewards = clipscore.rewards(scores)
    torch.testing.assert_close(rewards, torch.tensor([[0.125, -0.125, 0.0]], dtype=torch.float64))
    amplified = clipscore.rewards(scores, amplify=True)
    torch.testing.assert_close(
        amplified, torch.tensor([[0.99992, -0.99992, 0.0]], dtype=torch.float64), atol=1e-5, rtol=0
    )
    logits = torch.tensor([[2.0, 1.0, 0.0, -3.0]], dtype=torch.float64, requires_grad=True)
    index = losses.top_answers(logits, 3)
    for zero_sum in (True, False):
        loss = losses.policy_gradient(logits, index, rewards, zero_sum=zero_sum)
        assert loss.item() == pytest.approx(-0.125 / 3)  # -(1/3)(.25 - .125)
        (gradient,) = torch.autograd.grad(loss, logits)
        expected = torch.tensor([[-0.125, 0.125, 0.0, 0.0]], dtype=torch.float64) / 3
        torch.testing.assert_close(gradient, expected)


def test_opposite_vectors_score_zero_not_less():
    assert clipscore.clip_score(torch.tensor([-0.4, 0.0])).tolist() == [0.0, 0.0]


def test_a_single_sample_keeps_its_score_and_pushes_up_its_class():
    scores = torch.tensor([[0.8], [0.2]], dtype=torch.float64)
    rewards = clipscore.rewards(scores)
    assert torch.equal(rewards, scores)
    logits = torch.tensor([[1.0, 0.0, 0.5], [0.0, 2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    index = losses.top_answers(logits, 1)
    (gradient,) = torch.autograd.grad(losses.policy_gradient(logits, index, rewards), logits)
    one_hot = torch.nn.functional.one_hot(index[:, 0], 3)
    torch.testing.assert_close(gradient, scores * (logits.softmax(1) - one_hot) / 2)


def test_weights_of_an_ensemble_are_rounded_shares():
    assert clipscore.ensemble_weights([10, 3, 5]) == [0.56, 0.17, 0.28]
    assert clipscore.ensemble_weights([5, 3]) == [0.62, 0.38]


@pytest.mark.parametrize(("baseline", "holds"), [("image", True), ("batch", False), ("none", False)])
def test_the_log_sum_exp_cancels_only_with_a_baseline_of_each_image(baseline, holds):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 10, generator=generator, dtype=torch.float64)
    index = losses.top_answers(logits, 3)
    rewards = clipscore.rewards(torch.rand(6, 3, generator=generator, dtype=torch.float64), baseline=baseline)
    long, short = (losses.policy_gradient(logits, index, rewards, zero_sum=z) for z in (False, True))
    assert (abs(long - short) < 1e-12) == holds
    assert clipscore.sums_to_zero(baseline, 3) == holds and not clipscore.sums_to_zero(baseline, 1)


def test_a_reward_model_may_have_another_resolution_and_other_means():
    small, large = clip(), clip(image_size=24)
    reward = clipscore.ClipReward([small, large], [0.5, 0.5], like=small)
    pixels = small.transform.normalize(torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8))
    features = reward.encode_images(pixels)
    assert [f.shape for f in features] == [(2, 24), (2, 24)]
    assert torch.equal(features[0], clipscore.unit(small.image_features(pixels)))
    expected = large.image_features(clipscore.resize(pixels, 24))
    torch.testing.assert_close(features[1], clipscore.unit(expected))
    table = reward.table(features, reward.encode_texts(["a cat", "a dog", "dog cat"]))
    assert table.shape == (2, 3) and (table >= 0).all()


def test_an_ensemble_needs_a_confidence_for_each_model_that_the_paper_does_not_know():
    with pytest.raises(RecipeError, match=r"the paper gives no confidence .* Set one number"):
        clipscore.ensemble([clip(), clip()], mode="weighted")
    with pytest.raises(RecipeError, match="3 confidences for 2 reward models"):
        clipscore.ensemble([clip(), clip(), None], mode="weighted", confidences=(1, 2, 3))
    assert clipscore.ensemble([clip(), clip()], mode="mean")[1] == [0.5, 0.5]
    assert clipscore.ensemble([clip(), None], mode="weighted")[1] == [1.0]


def test_a_reward_that_is_not_finite_is_an_error():
    with pytest.raises(TrainingError, match="not finite"):
        clipscore.rewards(torch.tensor([[0.1, float("nan")]]))
