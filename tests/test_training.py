"""fit: schedules, clipping, accumulation, and stages that resume."""

import importlib.util
import json
import math

import pytest
import torch
from torch import nn

from perdure import training
from perdure.errors import RecipeError, TrainingError
from perdure.loading import TensorBatches
from perdure.runtime import Runtime
from perdure.training import Fit, Group, lr_factor


def runtime(**settings):
    return Runtime(device="cpu", quiet=True, **settings)


def regression(n=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(n, 3, generator=g), "y": torch.randn(n, generator=g)}


def fit(r, net, settings, data=None, batch_size=4, **more):
    batches = TensorBatches(data or regression(), batch_size=batch_size, runtime=r, stage="s")
    loss = lambda b: ((net(b["x"])[:, 0] - b["y"]) ** 2).mean()  # noqa: E731
    return training.fit(loss, dict(net.named_parameters()), batches, settings, runtime=r, stage="s", **more)


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def test_one_sgd_step_by_hand():
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(2.0)
    data = {"x": torch.tensor([[1.0], [3.0]]), "y": torch.tensor([0.0, 0.0])}
    losses = fit(runtime(), net, Fit(lr=0.1, optimizer="sgd"), data, batch_size=2)
    assert losses == [20.0]  # (2^2 + 6^2) / 2
    assert net.weight.item() == pytest.approx(2 - 0.1 * (2 * 2 * 1 + 2 * 6 * 3) / 2, abs=1e-6)


def test_adam_refuses_weights_in_which_its_epsilon_is_zero():
    half = [training.Group(parameters={"w": torch.zeros(2, dtype=torch.float16)})]
    with pytest.raises(RecipeError, match=r"float16 .*epsilon of 1e-08 is 0 in float16.*dtype: float32"):
        training.make_optimizer(half, training.Fit(lr=0.1))
    training.make_optimizer(half, training.Fit(lr=0.1, eps=1e-4))
    training.make_optimizer(half, training.Fit(lr=0.1, optimizer="sgd"))


def test_cosine_by_epoch_is_the_papers():
    two = Fit(lr=1e-3, epochs=2, schedule="cosine_epoch")
    assert [lr_factor(two, step, 5) for step in (0, 4, 5, 9)] == pytest.approx([1, 1, 0.505, 0.505])
    assert lr_factor(Fit(lr=1.0, schedule="cosine_epoch"), 3, 5) == 1.0


def test_cosine_by_step_ends_near_the_floor():
    fit = Fit(lr=1.0, epochs=2, schedule="cosine_step")
    assert lr_factor(fit, 5, 5) == pytest.approx(0.505)
    assert lr_factor(fit, 9, 5) == pytest.approx(0.01 + 0.495 * (1 + math.cos(0.9 * math.pi)))


def test_milestones_and_warm_up():
    steps = Fit(lr=1.0, epochs=12, schedule="multistep", milestones=(4, 10))
    assert [lr_factor(steps, e, 1) for e in (3, 4, 10)] == pytest.approx([1, 0.1, 0.01])
    warm = Fit(lr=1.0, epochs=10, schedule="cosine_warmup", warmup_steps=2)
    assert [lr_factor(warm, k, 1) for k in (0, 1, 2, 6)] == pytest.approx([0, 0.5, 1, 0.5])
    line = Fit(lr=1.0, epochs=10, schedule="linear_warmup", warmup_steps=2)
    assert [lr_factor(line, k, 1) for k in (2, 6)] == pytest.approx([1, 0.5])


def test_a_batch_in_parts_gives_the_same_steps():
    whole, parts = linear(), linear()
    a = fit(runtime(), whole, Fit(lr=0.1, epochs=3, clip_norm=1.0))
    b = fit(runtime(), parts, Fit(lr=0.1, epochs=3, clip_norm=1.0, accumulate=3))
    assert a == pytest.approx(b, rel=1e-5)
    assert torch.allclose(whole.weight, parts.weight, atol=1e-6)


def test_clipping_bounds_the_step():
    net = linear()
    before = net.weight.detach().clone(), net.bias.detach().clone()
    fit(runtime(), net, Fit(lr=1.0, optimizer="sgd", clip_norm=0.01), batch_size=10)
    moved = torch.cat([(net.weight - before[0]).flatten(), net.bias - before[1]])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-4)


def test_groups_have_their_own_rate_and_decay():
    net = linear()
    before = net.bias.detach().clone()
    r = runtime()
    groups = [Group(parameters={"w": net.weight}), Group(parameters={"b": net.bias}, lr=0.0, weight_decay=0.0)]
    batches = TensorBatches(regression(), batch_size=4, runtime=r, stage="s")
    training.fit(lambda b: net(b["x"]).square().mean(), groups, batches, Fit(lr=0.1), runtime=r, stage="s")
    assert torch.equal(net.bias, before)


def test_until_ends_the_fit_and_the_finished_stage_is_not_run_again(tmp_path):
    net = linear()
    seen = []
    losses = fit(runtime(out=tmp_path), net, Fit(lr=0.1, epochs=9), until=lambda e: seen.append(e) or e == 1)
    assert seen == [0, 1]
    assert len(losses) == 6
    other = linear()
    again = fit(runtime(out=tmp_path), other, Fit(lr=0.1, epochs=9), until=lambda e: seen.append(e))
    assert seen == [0, 1]
    assert again == losses
    assert torch.equal(other.weight, net.weight)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    net = linear()
    data = regression()
    data["y"][:] = torch.inf
    with pytest.raises(TrainingError, match="task 0, stage s: the loss is not finite at step 0"):
        fit(runtime(out=tmp_path, save_every=0.0), net, Fit(lr=0.1), data)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_last_step_to_weights_that_are_not_finite_is_not_saved(tmp_path):
    data = regression()
    data["y"][:] = 1e10  # the squared error is finite, its gradient times the rate is not
    with pytest.raises(TrainingError, match="a weight is not finite after step 0"):
        fit(runtime(out=tmp_path, save_every=0.0), linear(), Fit(lr=1e30), data)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_randomness_is_keyed_by_seed_task_and_name():
    a, b = runtime(seed=1), runtime(seed=1)
    assert torch.equal(a.permutation(20, "x", 0), b.permutation(20, "x", 0))
    assert not torch.equal(a.permutation(20, "x", 0), a.permutation(20, "x", 1))
    b.task = 3
    assert not torch.equal(a.normal((4,), "z"), b.normal((4,), "z"))


def test_events_are_json_lines(tmp_path):
    r = runtime(out=tmp_path)
    fit(r, linear(), Fit(lr=0.1))
    r.flush()
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_bf16_autocast_trains_float32_weights():
    net = linear()
    losses = fit(runtime(precision="bf16"), net, Fit(lr=0.1, epochs=20), batch_size=10)
    assert net.weight.dtype == torch.float32
    assert losses[-1] < losses[0]


def test_a_step_looks_for_no_package_on_disk(monkeypatch):
    r, net = runtime(), linear()
    fit(r, net, Fit(lr=0.1))  # what the first step imports
    looked = []
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: (looked.append(name), find(name, *more))[1])
    fit(r, net, Fit(lr=0.1, epochs=2, clip_norm=1.0))
    assert looked == []
