"""RAPF on a tiny real CLIP."""

from __future__ import annotations

import torch
from clip_methods import TEMPLATE, Recording, fresh_clip, learn, small_stream

from perdure.methods.rapf import Config, Rapf

SMALL = {"template": TEMPLATE, "epochs": 2, "batch_size": 4, "beta": 0.2, "threshold": 0.9}


def method(**settings) -> Rapf:
    torch.manual_seed(0)
    return Rapf(Config(**{**SMALL, **settings}), clip=fresh_clip())


def test_the_adapter_has_the_size_of_the_model():
    assert method().adapter.shape == (24, 24)


def test_all_of_clip_is_frozen():
    assert not [name for name, p in method().clip.named_parameters() if p.requires_grad]


def test_samples_a_step_follow_beta_unless_given():
    drawn = []

    class Counting(Recording):
        def normal(self, shape, *key, **options):
            drawn.append((key[0], tuple(shape)))
            return super().normal(shape, *key, **options)

    for settings, each in (
        ({"beta": 0.55}, {"replay": 5, "pairs": 11}),
        ({"n_replay": 3, "n_pair": 2}, {"replay": 3, "pairs": 2}),
    ):
        rapf, stream = method(threshold=10.0, **settings), small_stream()
        learn(rapf, stream.tasks[0])
        drawn.clear()
        learn(rapf, stream.tasks[1], Counting())
        assert {(kind, shape[1]) for kind, shape in drawn} == set(each.items())
        # k = 2 of the two old classes; 2 x 2 pairs
        assert {(kind, shape[0]) for kind, shape in drawn} == {("replay", 2), ("pairs", 4)}


def test_a_margin_below_every_difference_pushes_no_pair():
    adapters = []
    for margin, n_pair in ((-10.0, 4), (0.1, 0), (0.1, 4)):
        rapf = method(threshold=10.0, margin=margin, n_pair=n_pair, mix_bias=1.0)
        for task in small_stream():
            learn(rapf, task)
        adapters.append(rapf.adapter)
    torch.testing.assert_close(adapters[0], adapters[1])
    assert not torch.allclose(adapters[0], adapters[2])


def test_features_are_computed_once_a_task():
    rapf, task = method(epochs=5), small_stream().tasks[0]
    images = []
    hook = rapf.clip.model.vision_model.register_forward_hook(lambda _, inputs, output: images.append(len(output[0])))
    learn(rapf, task)
    hook.remove()
    assert sum(images) == len(task.train)


def test_fusion_mixes_the_old_adapter_in():
    adapters = {}
    for mix_bias in (0.0, 1.0):
        rapf, stream = method(mix_bias=mix_bias), small_stream()
        learn(rapf, stream.tasks[0])
        before = rapf.adapter.clone()
        learn(rapf, stream.tasks[1])
        adapters[mix_bias] = (rapf.adapter - before).norm()
    assert 0 < adapters[0.0] < adapters[1.0]
