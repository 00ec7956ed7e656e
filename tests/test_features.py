"""Frozen features on disk: answers are those of a run without them, whatever was there before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from perdure import features
from perdure.evaluate import Evaluation, evaluate, predicting, read_records
from perdure.loop import run
from perdure.runtime import Runtime
from perdure.settings import registry
from tests.every_method import METHODS, ON_A_VIT
from tests.methods.clip_methods import fresh_clip, small_stream


def answers(name, tmp_path, cache, *, seed=0, task=None, **settings):
    """Records of a method on a test set, and how many images its tower has seen."""
    method = METHODS[name].make(**settings)
    seen = []
    method.clip.model.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0])),
        with_kwargs=True,
    )
    task = task or small_stream(test=5).tasks[0]
    stream = replace(small_stream(test=5), tasks=(task,))
    query = stream.query(task, after=0)
    out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    runtime = Runtime(device="cpu", quiet=True, out=out, features=cache, seed=seed)
    with predicting(method, runtime):
        predict = method.predictor(query)
    evaluate(method, predict, task, query, Evaluation(batch_size=4), runtime=runtime, after=0)
    return read_records(out / "predictions" / "0_0.jsonl"), sum(seen)


def test_one_pass_serves_several_methods_with_the_same_answers(tmp_path):
    cache = tmp_path / "cache"
    plain = {"views": 1}
    alone = {name: answers(name, tmp_path, None, **plain)[0] for name in ("tda", "adapt")}
    first, images = answers("tda", tmp_path, cache, **plain)
    assert first == alone["tda"] and images == len(first)
    second, images = answers("adapt", tmp_path, cache, **plain)
    assert second == alone["adapt"] and images == 0
    again, images = answers("adapt", tmp_path, cache, mode="transductive", **plain)
    assert len(again) == len(first) and images == 0


def test_drawn_views_are_kept_by_seed_and_settings(tmp_path):
    cache = tmp_path / "cache"
    first, images = answers("zero", tmp_path, cache)
    again, none = answers("zero", tmp_path, cache)
    assert images and not none and again == first
    for other in ({"seed": 1}, {"augmix": True}, {"views": 5}):
        assert answers("zero", tmp_path, cache, **other)[1], other


def test_other_images_under_the_same_name_and_other_weights_are_other_rows(tmp_path):
    cache = tmp_path / "cache"
    task = small_stream(test=5).tasks[0]
    answers("tda", tmp_path, cache, task=task, views=1)
    half = task.test.select(range(3))
    assert answers("tda", tmp_path, cache, task=replace(task, test=half), views=1)[1] == 0
    inverted = type(half).of([replace(e, inputs={"image": 255 - e.inputs["image"]}) for e in half])
    assert answers("tda", tmp_path, cache, task=replace(task, test=inverted), views=1)[1] == 3
    weights = METHODS["tda"].make().clip.visual_parameters()
    changed = {name: torch.zeros_like(t) if i == 0 else t for i, (name, t) in enumerate(weights.items())}
    assert features.digest(weights) != features.digest(changed)


def test_a_damaged_file_is_made_again(tmp_path):
    cache = tmp_path / "cache"
    first, _ = answers("tda", tmp_path, cache, views=1)
    for path in cache.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:40])
    again, images = answers("tda", tmp_path, cache, views=1)
    assert images and again == first


def learned(make, tmp_path, cache):
    """What a method has learned of a stream, its scores, and how many images its tower has seen."""
    torch.manual_seed(0)
    method, seen = make(), []
    model = getattr(method, "clip", None) or getattr(method, "backbone", None) or getattr(method, "vit", None)
    tower = model.model.vision_model if hasattr(model, "model") else model.network
    tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0])),
        with_kwargs=True,
    )
    out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
    runtime = Runtime(device="cpu", quiet=True, out=out, features=cache)
    scores = run(method, small_stream(), runtime=runtime, evaluation=Evaluation(batch_size=4))
    return method.state_dict(), [row["values"]["accuracy"] for row in scores.rows], sum(seen)


def on_clip(name, **settings):
    """A method on the tiny CLIP; `ranpac`, which takes any backbone, too."""
    if name != "ranpac":
        return METHODS[name].factory(**settings)
    cls = registry.load("methods", name)
    return lambda: cls(cls.Config(projection_dim=24, **settings), backbone=fresh_clip())


FROZEN = ("prototype", "rail", "rapf", "ranpac", "continual_clip")
"""Methods that see an image through CLIP's frozen image side, whatever they make of it."""


@pytest.mark.parametrize("name", FROZEN[1:])
def test_a_second_method_learns_and_answers_from_what_the_first_left(name, tmp_path):
    cache = tmp_path / "cache"
    _, _, images = learned(on_clip("prototype"), tmp_path, cache)
    assert images == 2 * (4 + 2) * 2  # of each task's two classes, training and test images, each once
    alone, accuracies, some = learned(on_clip(name), tmp_path, None)
    assert some
    again, same, none = learned(on_clip(name), tmp_path, cache)
    assert none == 0 and same == accuracies
    for key, value in alone.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(again[key], value, rtol=1e-5, atol=1e-6)


def test_what_a_method_at_test_time_left_serves_the_tests_of_one_that_learns(tmp_path):
    cache, tasks = tmp_path / "cache", small_stream().tasks
    alone = learned(on_clip("prototype"), tmp_path, None)
    assert answers("tda", tmp_path, cache, task=tasks[0], views=1)[1] == len(tasks[0].test)
    _, accuracies, images = learned(on_clip("prototype"), tmp_path, cache)
    assert images == sum(len(task.train) for task in tasks) + len(tasks[1].test) and accuracies == alone[1]


def test_another_part_of_a_tower_is_kept_apart_and_queries_of_prompts_are_features_of_the_network(tmp_path):
    cache = tmp_path / "cache"
    learned(on_clip("prototype"), tmp_path, cache)
    assert learned(on_clip("bofa", augment="none"), tmp_path, cache)[2]
    assert not learned(on_clip("bofa", augment="none"), tmp_path, cache)[2]
    vit = tmp_path / "vit"
    asked = learned(METHODS["l2p"].factory(augment="none"), tmp_path, None)[2]
    learned(METHODS["ranpac"].factory(), tmp_path, vit)
    fewer = learned(METHODS["l2p"].factory(augment="none"), tmp_path, vit)[2]
    assert asked - fewer == sum(len(task.train) for task in small_stream())


def test_features_of_a_tower_that_a_first_session_changed_are_others(tmp_path):
    cache = tmp_path / "cache"
    session = {"first_session": "ssf", "epochs": 1, "session_batch_size": 3}
    plain, tuned = (METHODS["ranpac"].make(**settings).encoder() for settings in ({}, session))
    assert plain != tuned
    first = learned(METHODS["ranpac"].factory(**session), tmp_path, None)
    learned(METHODS["ranpac"].factory(), tmp_path, cache)
    again = learned(METHODS["ranpac"].factory(**session), tmp_path, cache)
    assert again[1] == first[1]
    torch.testing.assert_close(again[0]["weights"], first[0]["weights"])


def test_a_head_alone_is_trained_on_features_that_others_left(tmp_path):
    cache = tmp_path / "cache"
    learned(METHODS["ranpac"].factory(), tmp_path, cache)
    make = ON_A_VIT["finetune"].factory(trains="head")

    def probed():
        method = make()
        method.vit = method.network.vit
        return method

    alone, with_cache = learned(probed, tmp_path, None), learned(probed, tmp_path, cache)
    trained = sum(len(task.train) for task in small_stream())
    assert alone[2] - with_cache[2] == trained
    torch.testing.assert_close(alone[0]["head"], with_cache[0]["head"])
