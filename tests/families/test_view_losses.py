"""Selection, sampling and losses over views, by numbers that can be followed by hand; random views of an image."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import RecipeError
from perdure.families.test_time import augmix, losses, views
from perdure.loading import ExampleBatches
from perdure.models.clip.transform import ClipTransform
from perdure.runtime import Runtime
from perdure.types import Example, Examples


def peaked(*heights):
    """One view a height: two classes, the higher the surer."""
    return torch.tensor([[h, 0.0] for h in heights], dtype=torch.float64)


def test_the_surest_views_are_kept_the_surest_first():
    assert losses.select_views(peaked(1, 5, 0, 3), 0.5).tolist() == [1, 3]
    assert losses.select_views(peaked(1, 5, 0, 3) + 100, 0.5).tolist() == [1, 3]  # a constant changes nothing
    stacked = torch.stack([peaked(1, 5, 0, 3), peaked(9, 5, 0, 3)])
    assert losses.select_views(stacked, 0.25).tolist() == [[1], [0]]  # each image for itself


@pytest.mark.parametrize(("count", "share", "kept"), [(64, 0.1, 6), (20, 0.1, 2), (100, 0.29, 29), (1, 1.0, 1)])
def test_the_share_of_views_is_rounded_down(count, share, kept):
    assert losses.count_selected(count, share) == kept


def test_less_than_one_view_is_an_error_that_says_what_to_do():
    with pytest.raises(RecipeError, match=r"less than one view.*Set selection to 0\.25 or more"):
        losses.count_selected(4, 0.1)


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_mean_entropy_of_uniform_views_is_the_log_of_the_classes(classes):
    assert losses.average_entropy(torch.zeros(3, classes)).item() == pytest.approx(math.log(classes), abs=1e-6)


def test_mean_entropy_of_two_opposite_certain_views_is_the_log_of_two():
    logits = torch.tensor([[1000.0, 0.0], [0.0, 1000.0]])
    assert losses.average_entropy(logits).item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("kind", ["kd", "kd_plain", "dkd", "atkd", "atkd_std", "atkd2"])
def test_a_student_that_is_its_teacher_has_no_gradient(kind):
    teacher = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    student = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses.distill(kind, student, teacher).sum(), student)
    assert gradient.abs().max() < 1e-12


@given(st.integers(1, 3), st.integers(1, 4), st.integers(2, 6), st.integers(0, 99))
def test_losses_of_several_images_are_those_of_each(images, count, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = torch.randn(2, images, count, classes, generator=generator, dtype=torch.float64)
    for loss in (losses.average_entropy, *(lambda z, k=k: losses.distill(k, z, teacher) for k in ("kd", "dkd"))):
        together = loss(logits)
        assert together.shape == (images,)
    torch.testing.assert_close(losses.average_entropy(logits), torch.stack([losses.average_entropy(z) for z in logits]))


def test_drawn_answers_follow_the_distribution():
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
    assert losses.drawn_answers(logits, torch.tensor([[0.0, 0.69, 0.71, 0.89, 0.91, 0.999999]])).tolist() == [
        [0, 0, 1, 1, 2, 2]
    ]


# -- views --------------------------------------------------------------------------------------------------

IMAGE = np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8)
TRANSFORM = ClipTransform(size=32)


def made(name="one", *, seed=0, **settings):
    """One image's views as the loader of a test brings them."""

    def preprocess(example, training):
        return views.preprocess(example, TRANSFORM, **{"count": 6, **settings})

    examples = Examples.of([Example(id=name, inputs={"image": IMAGE})])
    runtime = Runtime(device="cpu", quiet=True, seed=seed)
    batches = ExampleBatches(examples, preprocess, batch_size=1, runtime=runtime, stage="test", training=False)
    ((batch, _),) = batches.epoch(0)
    return {"views": batch["views"][0], "seed": int(batch["seed"])}


@pytest.mark.parametrize("settings", [{}, {"crop": "hard"}, {"augmix": True}])
def test_views_depend_on_the_seed_and_the_id_alone(settings):
    torch.manual_seed(0)
    first = made(**settings)
    torch.manual_seed(1)
    torch.rand(7)
    again = made(**settings)
    assert torch.equal(first["views"], again["views"]) and first["seed"] == again["seed"]
    assert not torch.equal(first["views"], made("two", **settings)["views"])
    assert not torch.equal(first["views"], made(seed=1, **settings)["views"])
    assert first["views"].shape == (6, 3, 32, 32)
    assert torch.equal(first["views"][0].to(torch.uint8), TRANSFORM.pixels(IMAGE))
    assert len({bytes(v.numpy().tobytes()) for v in first["views"]}) == 6


def test_one_view_is_the_plain_one():
    assert torch.equal(made(count=1)["views"][0], TRANSFORM.pixels(IMAGE))


def test_crops_lie_within_the_image_also_where_it_is_very_long():
    generator = torch.Generator().manual_seed(0)
    for height, width in ((45, 60), (1, 1), (1, 500), (500, 3)):
        for _ in range(50):
            top, left, h, w = views.crop_box(height, width, generator, smallest=0.08)
            assert h > 0 and w > 0 and 0 <= top <= height - h and 0 <= left <= width - w


def test_a_mix_of_a_plain_image_with_itself_is_the_image():
    image = torch.full((3, 8, 8), 77, dtype=torch.uint8)
    chain = (augmix.Step(name="rotate", level=0.0),)
    mix = augmix.Mix(chains=(chain, chain), weights=(0.25, 0.75), share=0.4)
    torch.testing.assert_close(augmix.augmix(image, mix), image.float())


def test_moving_an_image_by_two_pixels_fills_with_black():
    image = torch.arange(1, 31, dtype=torch.uint8).view(1, 1, 30).expand(3, 30, 30).contiguous()
    moved = augmix.apply(image, augmix.Step(name="translate_x", level=2.0))  # int(2 * (30 / 3) / 10) = 2 px
    assert moved[0, 0, :3].tolist() == [3, 4, 5] and moved[0, 0, -2:].tolist() == [0, 0]
