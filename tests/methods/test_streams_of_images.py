"""Test-time methods that go on from image to image: stops in mid-stream, resets, batches, settings that do nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from perdure.errors import CheckpointError, DataError, Interrupted, RecipeError
from perdure.evaluate import Evaluation, evaluate, predicting, read_records
from perdure.loop import run
from perdure.methods import adapt, cotta, tda
from perdure.runtime import Runtime
from perdure.types import Query
from tests.every_method import METHODS, plain_net
from tests.methods.clip_methods import small_stream

CARRYING = [
    name
    for name, tiny in METHODS.items()
    if getattr(tiny.make(), "test_batch", None) or name in ("tda", "adapt", "dynaprompt")
]
BATCHED = ("tent", "eata", "sar", "cotta")


def one_set(test=4):
    """Test sets with classes of their own, and nothing to learn."""
    stream = small_stream(train=1, test=test)
    return replace(stream, shared_candidates=False)


class StopsAfter(Runtime):
    """Asked to stop after some batches of tests."""

    def __init__(self, out, batches, **settings):
        super().__init__(device="cpu", quiet=True, out=out, **settings)
        self.left = batches

    @property
    def stop_requested(self):
        self.left -= 1
        return self.left < 0

    @stop_requested.setter
    def stop_requested(self, value):
        pass


def scores_and_records(make, folder, stream, runtimes):
    for runtime in runtimes:
        try:
            torch.manual_seed(0)
            scores = run(
                make(), stream, evaluation=Evaluation(batch_size=2, plan="current", order="shuffled"), runtime=runtime
            )
            files = sorted((folder / "predictions").iterdir())
            assert [file.suffix for file in files] == [".jsonl"] * len(stream)
            return scores.rows, [read_records(file) for file in files]
        except Interrupted:
            continue
    raise AssertionError("no progress")


@pytest.mark.parametrize("continual", [False, True])
@pytest.mark.parametrize("name", CARRYING)
def test_a_stream_that_is_stopped_again_and_again_ends_to_the_bit_as_one_that_is_not(name, continual, tmp_path):
    stream = small_stream(train=1, test=3)
    stream = replace(
        stream,
        tasks=tuple(
            replace(
                t,
                candidates=stream.tasks[0].candidates,
                offset=0,
                test=t.test.relabel(lambda label, first=t.offset: label - first),
                train=t.train.relabel(lambda label, first=t.offset: label - first),
            )
            for t in stream.tasks
        ),
        shared_candidates=False,
    )

    def make():
        return METHODS[name].make(continual=continual)

    whole = scores_and_records(make, tmp_path / "a", stream, [Runtime(device="cpu", quiet=True, out=tmp_path / "a")])
    stops = (StopsAfter(tmp_path / "b", 1) for _ in range(100))
    assert scores_and_records(make, tmp_path / "b", stream, stops) == whole


def answered(method, images, query, *, batch=4):
    torch.manual_seed(0)
    with predicting(method, Runtime(device="cpu", quiet=True)):
        predict = method.predictor(query)
        parts = []
        for begin in range(0, len(images), batch):
            items = [method.preprocess(e, False) for e in images[begin : begin + batch]]
            made = {
                key: torch.stack([item[key] for item in items]) for key in items[0] if torch.is_tensor(items[0][key])
            }
            parts.append(predict({**made, "seed": torch.arange(begin, begin + len(items))}))
        return torch.cat(parts).detach()


def images_and_query(test=4):
    task = small_stream(train=1, test=test).tasks[0]
    return list(task.test), Query(kind="classify", candidates=task.candidates)


@pytest.mark.parametrize("name", CARRYING)
def test_each_test_set_begins_anew_unless_it_is_to_go_on(name):
    images, query = images_and_query()
    settings = {"choice": "paper"} if name == "dynaprompt" else {}  # else each of these images takes a new prompt
    method = METHODS[name].make(**settings)
    assert torch.equal(answered(method, images, query), answered(method, images, query))
    method = METHODS[name].make(continual=True, **settings)
    assert not torch.equal(answered(method, images, query), answered(method, images, query))


OFF = {
    "tda": {"positive_alpha": 0.0, "negative_alpha": 0.0},
    "tent": {"lr": 0.0},
    "eata": {"e_margin": 0.0},
    "sar": {"lr": 0.0},
    "cotta": {"lr": 0.0, "restore_probability": 0.0, "augmentation_threshold": 0.0},
}


@pytest.mark.parametrize("name", OFF)
def test_without_its_own_part_a_method_is_zero_shot(name):
    images, query = images_and_query()
    settings = {"views": 1} if name == "tda" else {}
    ours = METHODS[name].make(**OFF[name], **settings)
    plain = METHODS["zero_shot"].make()
    plain.policy.load_state_dict(ours.clip.state_dict())
    expected = answered(plain, images, query)
    scale = 100.0 / float(ours.clip.scale) if name == "tda" else 1.0
    torch.testing.assert_close(answered(ours, images, query), scale * expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BATCHED)
def test_a_plain_network_adapts_and_its_stored_statistics_stay(name):
    images, query = images_and_query()
    cls = type(METHODS[name].make())
    net = plain_net()
    before = {n: t.clone() for n, t in net.state_dict().items() if "running" in n}
    settings = dict(METHODS[name].settings) | {"batch_size": 4, "lr": 0.1}
    method = cls(cls.Config(**settings), net=net)
    answered(method, images, query)
    after = net.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert any(not torch.equal(method.first[n], p) for n, p in method.tuned.items())


def test_batch_norm_with_one_value_a_channel_is_one_message():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4), torch.nn.BatchNorm1d(4))
    images, query = images_and_query()
    tent = type(METHODS["tent"].make())
    method = tent(tent.Config(batch_size=1), net=net)
    with pytest.raises(RecipeError, match=r"batch norm .2 or a later one. sees one value a channel in a batch of 1"):
        answered(method, images, query, batch=1)


@pytest.mark.parametrize("name", BATCHED)
def test_models_are_one_and_it_has_norm_layers(name):
    cls = type(METHODS[name].make())
    with pytest.raises(RecipeError, match="no model"):
        cls(cls.Config())
    with pytest.raises(RecipeError, match="two models"):
        cls(cls.Config(), clip=METHODS[name].roles["clip"](), net=plain_net())
    if name != "cotta":
        with pytest.raises(RecipeError, match="no normalisation layer"):
            cls(cls.Config(), net=torch.nn.Linear(3, 2))


def test_settings_out_of_range_name_the_range():
    with pytest.raises(RecipeError, match="at least 10 views"):
        tda.Tda(tda.Config(views=4), clip=METHODS["tda"].roles["clip"]())
    assert list(tda.Config(views=4).faults()) and list(tda.Config(mask_window=(1.0, 0.0)).faults())
    with pytest.raises(DataError, match="pixels between"):
        cotta._require_range(torch.tensor([-0.1, 0.5]))


def test_other_classes_cannot_carry_on_a_cache():
    images, query = images_and_query()
    method = METHODS["tda"].make(continual=True)
    answered(method, images, query)
    with pytest.raises(RecipeError, match="different classes"):
        method.predictor(Query(kind="classify", candidates=query.candidates[:1]))


def test_eata_goes_on_without_clean_images_as_eta_and_says_so(capsys):
    stream = small_stream(train=0, test=2)
    method = METHODS["eata"].make()
    runtime = Runtime(device="cpu")
    method.learn(stream.tasks[0], runtime)
    assert method.fisher is None and "as ETA" in capsys.readouterr().err
    with_images = small_stream(train=2, test=2).tasks[0]
    method.learn(with_images, runtime)
    assert method.fisher is not None and all(bool((f >= 0).all()) for f in method.fisher.values())


def test_an_equal_feature_in_every_place_leaves_the_gaussian_flat():
    fitted = adapt.fit(torch.eye(3), torch.zeros(3, 3), 5)
    assert torch.allclose(fitted.scores(torch.eye(3)), torch.full((3, 3), -math.log(3))) and not fitted.weight.any()


def test_restored_weights_are_as_many_as_asked_for():
    draw = cotta._Bernoulli(0.01, 0)
    mask = draw("w", torch.zeros(400, 500))
    assert abs(float(mask.float().mean()) - 0.01) < 1e-3
    rows = mask.float().mean(1)
    assert float(rows.std()) == pytest.approx(math.sqrt(0.01 * 0.99 / 500), rel=0.15), "places are independent"
    assert (
        bool(cotta._Bernoulli(1.0, 0)("w", torch.zeros(3)).all())
        and not cotta._Bernoulli(0.0, 0)("w", torch.zeros(3)).any()
    )


def test_a_state_of_another_method_is_one_message(tmp_path):
    stream = one_set()
    task = stream.tasks[0]
    query = stream.query(task, after=0)
    for name in ("tent", "tda"):
        method = METHODS[name].make()
        runtime = StopsAfter(tmp_path, 1)
        with predicting(method, runtime):
            predict = method.predictor(query)
        error = Interrupted if name == "tent" else CheckpointError
        with pytest.raises(error):
            evaluate(method, predict, task, query, Evaluation(batch_size=2), runtime=runtime, after=0)
