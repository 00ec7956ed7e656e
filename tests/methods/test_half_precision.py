"""bf16 and fp16: methods move as in float32, losses are scaled and gradients unscaled, a CPU refuses fp16."""

from collections.abc import Mapping

import pytest
import torch

from perdure.errors import RecipeError
from perdure.evaluate import Evaluation, evaluate
from perdure.families.captioning import adapting
from perdure.families.test_time.half import LOSS_SCALE, unscale
from perdure.loading import ExampleBatches
from perdure.loop import seed_everything
from perdure.runtime import Runtime
from perdure.runtime.devices import seed_torch
from tests.every_method import METHODS

ADAPTING = ("tpt_prompt", "tpt_encoder", "kd", "rlcf_prompt", "rlcf_encoder", "rlcf_retrieval")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(dtype):
    """As a runtime of that precision; a CPU can do float16 this way, too, which emulates a GPU."""
    return torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def answered(method, task, query, dtype):
    batches = ExampleBatches(
        task.test, method.preprocess, batch_size=4, runtime=runtime(), stage="test", training=False
    )
    with autocast(dtype):
        predict = method.predictor(query)
    found = []
    for batch, _ in batches.epoch(0):
        with autocast(dtype):
            found.append(predict(batch).detach().float())
    return torch.cat(found).flatten()


def runtime(**settings):
    return Runtime(device="cpu", quiet=True, **settings)


def moved(name, dtype, **settings):
    """By how much adapting moves the scores of a tiny test set."""
    tiny = METHODS[name]
    task = tiny.stream.tasks[0]
    query = tiny.stream.query(task, after=0)
    after, before = (answered(made(tiny, **settings, **more), task, query, dtype) for more in ({}, {"steps": 0}))
    return after - before


def made(tiny, **settings):
    seed_everything(0)
    return tiny.make(**settings)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("name", ADAPTING)
def test_adapting_moves_scores_in_half_precision_as_in_float32(name, at_once, half):
    """Length within 30 % and direction within 20 degrees for bf16 (which has 8 bits), a tenth of that for fp16."""
    tolerance = 0.3 if half == "bf16" else 0.03
    whole, found = (moved(name, dtype, at_once=at_once) for dtype in (None, HALVES[half]))
    assert whole.norm() > 0.1, "a test of nothing"
    assert abs(found.norm() / whole.norm() - 1) < tolerance
    assert torch.cosine_similarity(found, whole, dim=0) > 1 - tolerance / 5


@pytest.mark.parametrize("half", HALVES)
def test_adapting_moves_the_prefix_of_a_caption_in_half_precision_as_in_float32(half, monkeypatch):
    """Captions are words: what the mapper gives at the end is compared."""
    prefixes = []

    def final(self, features):
        prefixes.append(self.captioner.mapper(features).float().flatten())
        return ""

    monkeypatch.setattr(adapting.CaptionTuner, "_final", final)
    tiny = METHODS["rlcf_caption"]
    task = tiny.stream.tasks[0]
    change = {}
    for dtype in (None, HALVES[half]):
        found = []
        for steps in (0, 1):
            prefixes.clear()
            method = made(tiny, steps=steps)
            with torch.enable_grad(), autocast(dtype):
                predict = method.predictor(tiny.stream.query(task, after=0))
                predict(
                    {"image": torch.stack([method.preprocess(task.test[0], False)["image"]]), "seed": torch.zeros(1)}
                )
            found.append(prefixes[0])
        change[dtype] = found[1] - found[0]
    whole, other = change.values()
    assert abs(other.norm() / whole.norm() - 1) < 0.3
    assert (
        torch.cosine_similarity(other, whole, dim=0) > 0.5
    )  # signs of small gradients differ, and AdamW follows signs


def test_a_gradient_that_overflows_is_left_out_of_its_own_sample_alone():
    one, other = torch.full((2, 3), 2 * LOSS_SCALE), torch.full((2,), LOSS_SCALE)
    one[1, 2] = torch.inf
    unscale([one, other], LOSS_SCALE, stacked=True)
    assert one.tolist() == [[2, 2, 2], [0, 0, 0]] and other.tolist() == [1, 0]
    whole = torch.tensor([torch.nan, 1.0])
    unscale([whole], LOSS_SCALE, stacked=False)
    assert whole.tolist() == [0, 0]


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_fp16_on_a_cpu_is_refused_before_work(device):
    with pytest.raises(RecipeError, match=r"run\.precision is fp16 on a CPU"):
        Runtime(device=device, quiet=True, precision="fp16")


class Noting(Runtime):
    """Notes the losses; with `scaled`, losses are scaled as for fp16 (which a CPU refuses) and computed in float32."""

    def __init__(self, *, scaled=False, **settings):
        super().__init__(device="cpu", quiet=True, **settings)
        self.losses = []
        if scaled:
            self.accelerator.scaler = torch.amp.GradScaler("cpu")
            self.accelerator.native_amp, self.accelerator.state._mixed_precision = True, "fp16"

    def log(self, event, **values):
        if "loss" in values:
            self.losses.append(values["loss"].detach())


def numbers(state):
    """All floating-point numbers of a state, as one vector."""
    if isinstance(state, torch.Tensor):
        return state.detach().double().flatten() if state.is_floating_point() else torch.zeros(0)
    parts = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return torch.cat([torch.zeros(0), *map(numbers, parts)])


def learned(name, **settings):
    """State after the first task, the first loss, and the shares of right answers."""
    tiny, runtime = METHODS[name], Noting(**settings)
    method, task = made(tiny), tiny.stream.tasks[0]
    runtime.task = 0
    seed_torch(runtime.key("learn"))
    method.learn(task, runtime)
    state = numbers(method.state_dict())  # tests may leave something, too
    query = tiny.stream.query(task, after=0)
    if not runtime.accelerator.scaler:  # that it answers
        with torch.set_grad_enabled(getattr(method, "adapts", False)), runtime.autocast():
            predict = method.predictor(query)
        evaluate(method, predict, task, query, Evaluation(batch_size=4), runtime=runtime, after=0)
    return state, runtime.losses[:1]


DRAWN = {"dynamos": 0.2, "dynamos_sgd": 0.2, "coda_prompt": 0.3, "l2p": 0.05, "l2p_prefix": 0.05, "dualprompt": 0.05}
"""Gates are drawn, and a draw near its probability falls on the other side; keys of prompts have gradients near 0, of
which Adam's steps take the sign."""


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_in_bf16_and_with_scaled_losses_as_in_float32(name):
    """bf16: the state within 1 %, the first loss within 3 %. Scaling by powers of two and unscaling moves no bit."""
    (state, loss), (half, half_loss), (scaled, scaled_loss) = (
        learned(name, **settings) for settings in ({}, {"precision": "bf16"}, {"scaled": True})
    )
    assert torch.equal(scaled, state) and scaled_loss == loss
    assert (half - state).norm() <= DRAWN.get(name, 0.01) * state.norm()
    for found, expected in zip(half_loss, loss, strict=True):
        assert abs(found - expected) <= max(0.03, DRAWN.get(name, 0)) * abs(expected)
