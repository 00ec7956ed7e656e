"""Frozen features on disk: answers are those of a run without them, whatever was there before."""

from __future__ import annotations

from dataclasses import replace

import torch

from perdure import features
from perdure.evaluate import Evaluation, evaluate, predicting, read_records
from perdure.runtime import Runtime
from tests.every_method import METHODS
from tests.methods.clip_methods import small_stream


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
