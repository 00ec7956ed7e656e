"""Permuted, rotated, turning and boundary-free streams on scikit-learn's digits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from perdure.errors import DataError
from perdure.settings.config import Named
from perdure.streams import general, mnist360, permuted, rotated

DIGITS = Named(place="data", name="digits")
MICROWORLD = Named(place="data", name="microworld", settings={"train_per_class": 8, "test_per_class": 3})
CONFIGS = {
    "permuted": (permuted, permuted.Config, {"tasks": 2}),
    "rotated": (rotated, rotated.Config, {"tasks": 2}),
    "general": (general, general.Config, {"step": 2, "order": "random"}),
    "mnist360": (mnist360, mnist360.Config, {"classes": 4}),
}
"""Module, settings' class and settings of each stream."""


@pytest.fixture(scope="module")
def digits():
    return DIGITS.build()


def test_permuted_images_have_the_same_pixels_in_one_order_a_task(digits):
    stream = permuted.build(permuted.Config(data=DIGITS, tasks=3, train_per_class=2, test_per_class=1))
    assert [len(task.train) for task in stream] == [20, 20, 20]
    assert all(task.candidates == digits.candidates and task.offset == 0 for task in stream)
    image = next(iter(digits.train)).inputs["image"]
    seen = [task.train[0].inputs["image"] for task in stream]
    for other in seen:
        assert sorted(other[..., 0].flatten()) == sorted(image[..., 0].flatten())
    assert not np.array_equal(seen[0], seen[1])
    change = permuted.Permute((0, 1), 64)
    rebuilt = np.stack([change(e.inputs["image"]) for e in digits.train.select([0, 5])])
    chosen = [stream.tasks[1].train[i] for i in range(20)]
    assert any(np.array_equal(rebuilt[0], e.inputs["image"]) for e in chosen)


def test_rotated_images_are_turned_by_the_angle_of_their_task(digits):
    stream = rotated.build(rotated.Config(data=DIGITS, tasks=2, angles=(0.0, 90.0), train_per_class=1))
    upright, turned = (task.train[3].inputs["image"] for task in stream)
    assert np.array_equal(np.asarray(Image.fromarray(upright).rotate(90)), turned)
    assert stream.tasks[1].facts["degrees"] == 90.0


def test_angles_are_drawn_from_the_seed():
    angles = [
        [task.facts["degrees"] for task in rotated.build(rotated.Config(data=DIGITS, tasks=4, seed=seed))]
        for seed in (1, 1, 2)
    ]
    assert angles[0] == angles[1] != angles[2]
    assert all(0 <= angle < 180 for angle in angles[0])


def test_ids_are_unique_over_a_task():
    for stream in (
        permuted.build(permuted.Config(data=DIGITS, tasks=1)),
        mnist360.build(mnist360.Config(data=DIGITS)),
        general.build(general.Config(data=DIGITS, step=2)),
    ):
        ids = [example.id for task in stream for split in (task.train, task.test) for example in split]
        assert len(ids) == len(set(ids))


def test_chunks_are_cut_in_stored_order():
    assert mnist360.chunk_sizes(61, 6) == [11, 11, 11, 11, 11, 6]
    assert mnist360.chunk_sizes(3, 6) == [1, 1, 1, 0, 0, 0]


def test_the_real_counts_give_the_published_schedule():
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851]
    plan = mnist360.schedule(counts, 16)
    assert len(plan) == 3387
    assert sum(step.n0 + step.n1 for step in plan) == 54051
    assert plan[0][3:] == (983, 1122, 7, 9) and plan[1][3:] == (976, 1113, 7, 9)
    assert len({(step.round, step.first) for step in plan}) == 27
    assert len(mnist360.schedule(counts, 10)) == 5416
    assert mnist360.train_angle(0, 0, counts[0]) == 300.0


def test_each_image_is_served_at_most_once_by_default():
    task = mnist360.build(mnist360.Config(data=DIGITS)).tasks[0]
    sources = [example.id.split("/", 2)[2] for example in task.train]
    assert len(sources) == len(set(sources))
    assert sum(task.facts["batches"]) == len(task.train)
    assert task.train.targets[: task.facts["batches"][0]] == sorted(task.train.targets[: task.facts["batches"][0]])
    assert set(task.train.targets) == set(range(9))


def test_official_sampling_repeats_images_and_leaves_others_out():
    usual = mnist360.build(mnist360.Config(data=DIGITS)).tasks[0]
    official = mnist360.build(mnist360.Config(data=DIGITS, official_sampling=True)).tasks[0]
    assert official.facts["batches"] == usual.facts["batches"]
    assert official.train.targets == usual.train.targets
    sources = {example.id.split("/", 2)[2] for example in official.train}
    assert 0.5 < len(sources) / len(usual.train) < 0.8


def test_the_test_serves_each_image_once_in_order_while_its_class_turns(digits):
    task = mnist360.build(mnist360.Config(data=DIGITS)).tasks[0]
    sources = [example.id.split("/", 2)[2] for example in task.test]
    assert sources == [e.id for c in range(9) for e in digits.test if e.target == c]
    second = next(e for e in digits.test if e.id == sources[1]).inputs["image"]
    count = digits.test.targets.count(0)
    expected = np.asarray(Image.fromarray(second).rotate(360 / count))
    assert np.array_equal(task.test[1].inputs["image"], expected)


def test_more_classes_than_the_data_has_are_refused():
    with pytest.raises(DataError, match="10 classes"):
        mnist360.build(mnist360.Config(data=DIGITS, classes=11))


def test_a_stream_without_boundaries_brings_class_groups_in_order():
    stream = general.build(general.Config(data=DIGITS, step=2, batch_size=16))
    (task,) = stream.tasks
    groups = [target // 2 for target in task.train.targets]
    assert groups == sorted(groups)
    assert task.facts["batches"][:-1] == [16] * (len(task.facts["batches"]) - 1)
    assert len(task.candidates) == 10


def test_the_same_seed_gives_the_same_stream():
    for make, config in (
        (permuted, permuted.Config(data=DIGITS, tasks=2)),
        (mnist360, mnist360.Config(data=DIGITS)),
        (general, general.Config(data=DIGITS, step=5)),
    ):
        assert make.build(config).manifest == make.build(config).manifest


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("data", [DIGITS, MICROWORLD], ids=["digits", "microworld"])
def test_each_form_is_made_of_digits_and_of_microworld(name, data):
    module, config, settings = CONFIGS[name]
    stream = module.build(config(data=data, train_per_class=6, test_per_class=2, **settings))
    for task in stream:
        assert set(task.train.targets) == set(range(len(task.candidates)))
        assert set(task.test.targets) == set(range(len(task.candidates)))
        assert task.train[0].inputs["image"].dtype == np.uint8


@pytest.mark.parametrize("name", CONFIGS)
def test_a_share_of_the_training_images_is_held_out_for_validation(name, digits):
    module, config, settings = CONFIGS[name]
    whole = module.build(config(data=DIGITS, **settings)).tasks[0]
    held = module.build(config(data=DIGITS, validation_share=0.1, **settings)).tasks[0]
    assert not len(whole.validation)
    classes = len(held.candidates)
    of_classes = len([t for t in digits.train.targets if name != "mnist360" or t < classes])
    assert 0.07 < len(held.validation) / of_classes < 0.13
    assert set(held.validation.targets) == set(range(classes))
    sources = [{example.id.split("/")[-1] for example in part} for part in (held.train, held.validation)]
    assert not sources[0] & sources[1]
    assert [e.id for e in held.test] == [e.id for e in whole.test]


def test_validation_images_turn_as_test_images_do():
    task = mnist360.build(mnist360.Config(data=DIGITS, validation_share=0.2)).tasks[0]
    assert task.validation.targets == sorted(task.validation.targets)
    assert task.validation[0].id.startswith("validation/")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_class_without_training_images_is_named(name, monkeypatch, digits):
    module, config, settings = CONFIGS[name]
    kept = [p for p, target in enumerate(digits.train.targets) if target != 3]
    lacking = dataclasses.replace(digits, train=digits.train.select(kept))
    monkeypatch.setattr(Named, "build", lambda self: lacking)
    with pytest.raises(DataError, match=r"no train(ing)? image of .*\b3\b"):
        module.build(config(data=DIGITS, **settings))


def test_a_permuted_image_of_another_size_is_refused():
    change = permuted.Permute((0, 0), 64)
    with pytest.raises(DataError, match="9 x 8 pixels"):
        change(np.zeros((9, 8, 1), dtype=np.uint8))
