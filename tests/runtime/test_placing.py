"""Models are found wherever a method keeps them, and the second device tells where a tensor lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import nn

from perdure.checkpoint import load, save
from perdure.runtime import Runtime, placing
from perdure.settings import registry
from perdure.testing.second_device import second_device
from perdure.types import Example, Examples
from tests.every_method import ASKED, METHODS
from tests.toy import Config, Toy


@dataclass(frozen=True)
class Pair:
    left: nn.Module
    right: list[nn.Module] = field(default_factory=list)


class Ensemble:
    def __init__(self, models):
        self.models = models

    def score(self, x):
        return x


class Mine(Toy):
    """Of this file's package."""


class Slotted:
    __slots__ = ("inner",)

    def __init__(self, inner):
        self.inner = inner


def layer() -> nn.Linear:
    return nn.Linear(2, 2)


def test_models_are_found_in_lists_dicts_dataclasses_and_objects_of_the_methods_own():
    method = Mine(Config())
    method.towers = {"image": [layer()], 3: (layer(),)}
    method.pair = Pair(layer(), [layer()])
    method.reward = Ensemble([layer(), layer()])
    method.slotted = Slotted(layer())
    method.call, method.bound = partial(Ensemble, layer()), Ensemble([layer()]).score
    method.itself = method
    method.seen = Examples.of([Example(id="a", inputs={"net": layer()})])
    assert set(placing.modules(method)) == {
        *("net", "towers['image'][0]", "towers[3][0]", "pair.left", "pair.right[0]"),
        *("reward.models[0]", "reward.models[1]", "slotted.inner", "call[1]", "bound.__self__.models[0]"),
    }


def test_a_module_within_a_module_is_named_once():
    method = Toy(Config(), net=nn.Sequential(nn.Linear(12, 6)))
    method.head = method.net[0]
    assert set(placing.modules(method)) == {"net"}


def test_placing_moves_all_models_and_keeps_the_parameters_that_others_hold():
    method = Toy(Config())
    method.towers = {"image": [layer()]}
    held = list(method.net.parameters())
    with second_device() as device:
        assert len(placing.off(method, device)) == 4
        runtime = Runtime(device="cpu", quiet=True)
        runtime.device = device
        placing.place(method, runtime)
        assert placing.off(method, device) == []
        assert all(p is q and p.device == device for p, q in zip(held, method.net.parameters()))


def test_in_a_sharded_run_a_model_that_a_stage_shards_is_left_alone():
    method = Toy(Config())
    method.big = layer()
    method.big.sharded_by_stage = True
    with second_device() as device:
        runtime = Runtime(device="cpu", quiet=True)
        runtime.device, runtime.sharded = device, True
        placing.place(method, runtime)
        assert placing.off(method, device) == ["big.weight", "big.bias"]


# -- the second device --------------------------------------------------------------------------------------


def cases():
    a, b = torch.ones(3), torch.ones(3)
    return {
        "a sum": lambda far: far + b,
        "a product of matrices": lambda far: far.outer(far) @ b,
        "a list": lambda far: torch.cat([far, b]),
        "writing into the CPU": lambda far: a.add_(far),
        "an index on it into the CPU": lambda far: b[far.long()],
        "written values": lambda far: b.clone().index_put_((torch.tensor([0]),), far[:1]),
        "a draw from the CPU's generator": lambda far: torch.rand(2, generator=torch.Generator(), device=far.device),
        "noise from the CPU's generator": lambda far: far.normal_(generator=torch.Generator()),
        "a fresh tensor without a device": lambda far: far + torch.zeros(3),
        "a number on it into the CPU": lambda far: b + far.sum(),
    }


@pytest.mark.parametrize("what", cases())
def test_mixed_devices_raise(what):
    with second_device() as device, pytest.raises(RuntimeError):
        cases()[what](torch.ones(3).to(device))


def test_what_cuda_lets_through_is_let_through():
    with second_device() as device:
        far = torch.ones(3, device=device)
        values = [
            far + torch.tensor(2.0),
            far[torch.tensor([0, 2])],
            far.clone().copy_(torch.zeros(3)),
            torch.zeros_like(far),
            far.new_zeros(2),
            torch.nn.functional.one_hot(far.long()),
            far[1:].view(2, 1),
        ]
        assert all(value.device == device and value.is_cuda for value in values)
        assert far.cpu().device.type == far.to("cpu").device.type == "cpu"
        assert far.to(device) is far and far.to(torch.float64).device == device
        assert float(far.sum()) == 3.0 and far.tolist() == [1.0] * 3


def test_backward_passes_optimizers_and_copies_stay_on_the_device():
    from copy import deepcopy

    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with second_device() as device:
        net.to(device)
        optimizer = torch.optim.Adam(net.parameters())
        net(torch.ones(2, 3, device=device)).square().sum().backward()
        optimizer.step()
        tensors = [*(p.grad for p in net.parameters()), *deepcopy(net).state_dict().values()]
        assert all(t.device == device for t in tensors)


def test_an_array_of_a_tensor_on_it_is_refused_and_a_saved_state_is_on_the_cpu(tmp_path):
    with second_device() as device:
        far = torch.ones(3, device=device)
        with pytest.raises(TypeError, match="numpy"):
            far.numpy()
        save(tmp_path / "state.safetensors", {"far": far})
        assert load(tmp_path / "state.safetensors")["far"].device.type == "cpu"


def test_outside_of_it_everything_is_as_before():
    with second_device():
        pass
    assert torch.ones(3).device.type == "cpu" and torch.ones(3).numpy().sum() == 3
    assert "device" not in vars(torch.Tensor)


def beyond_the_first():
    """Kinds of streams, and models of optional roles, with which `check_method` sees no method."""
    for name, kind in ASKED:
        if kind != next(iter(METHODS[name].streams)) or registry.describe("methods", name).optional_roles:
            yield name, kind


@pytest.mark.filterwarnings("error:.*pin_memory:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), beyond_the_first())
def test_every_method_learns_predicts_and_resumes_on_a_second_device(name, kind):
    """With its first kind and no optional role: see ``methods/test_every_method.py``."""
    from perdure.testing import CHECKS, Subject

    tiny = METHODS[name]
    make = partial(tiny.make, optional=True)
    CHECKS["every_tensor_follows_the_device"](Subject(make, tiny.streams[kind]()))
