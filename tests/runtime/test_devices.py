"""A device is what was asked for, or is refused by name; its name, seeds and memory are its own."""

from __future__ import annotations

import pytest
import torch

from perdure.errors import RecipeError
from perdure.runtime import Runtime, devices


class Module:
    """What `torch.cuda` and `torch.xpu` have alike."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def set_device(self, device):
        self.calls.append(("set", str(device)))

    def get_device_name(self, device):
        return f"Card {device.index}"

    def max_memory_allocated(self, device):
        return 100 + device.index


@pytest.fixture
def machine(monkeypatch):
    """A machine with two CUDA devices, an XPU and MPS."""
    module = Module()
    for kind, count in (("cuda", 2), ("xpu", 1)):
        monkeypatch.setattr(getattr(torch, kind), "is_available", lambda: True)
        monkeypatch.setattr(getattr(torch, kind), "device_count", lambda count=count: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 7)
    monkeypatch.setattr(devices, "_module", lambda device: module)
    for kind, name in (("cuda", "manual_seed_all"), ("xpu", "manual_seed_all"), ("mps", "manual_seed")):
        call = lambda seed, kind=kind: module.calls.append((kind, seed))  # noqa: E731
        monkeypatch.setattr(getattr(torch, kind), name, call)
    devices._seeders.cache_clear()
    yield module
    devices._seeders.cache_clear()


@pytest.mark.parametrize("name", ["mps", "cuda", "cuda:1", "xpu", "xpu:3"])
def test_a_device_that_is_not_there_is_refused_by_name(name):
    if name.partition(":")[0] in {n.partition(":")[0] for n in devices.available()}:
        pytest.skip("it is there")
    with pytest.raises(RecipeError, match=rf"run\.device: the device {name} is not there\. Expected .*cpu"):
        Runtime(device=name, quiet=True)


@pytest.mark.parametrize(
    ("asked", "got", "name", "memory"),
    [
        ("auto", "cuda:0", "Card 0", 100),
        ("cuda", "cuda:0", "Card 0", 100),
        ("cuda:1", "cuda:1", "Card 1", 101),
        ("xpu", "xpu:0", "Card 0", 100),
        ("mps", "mps", "Apple GPU (mps)", 7),
        ("cpu", "cpu", "CPU ", None),
    ],
)
def test_a_runtime_has_the_device_that_was_asked_for_whatever_an_earlier_one_had(machine, asked, got, name, memory):
    Runtime(device="cpu", quiet=True)
    runtime = Runtime(device=asked, quiet=True)
    assert str(runtime.device) == str(runtime.accelerator.device) == got
    assert [call for call in machine.calls if call[0] == "set"] == ([("set", got)] if ":" in got else [])
    assert devices.full_name(runtime.device).startswith(name)
    assert runtime.peak_memory().get("gpu") == memory


def test_one_device_too_many_is_refused_with_those_that_are_there(machine):
    with pytest.raises(RecipeError, match=r"cuda:2 is not there\. Expected cuda:0, cuda:1, xpu:0, mps, cpu"):
        devices.chosen("cuda:2")


def test_all_devices_in_use_are_seeded(machine):
    devices.seed_torch(5)
    assert machine.calls == [("cuda", 5), ("xpu", 5), ("mps", 5)]
    assert torch.initial_seed() == 5


def test_forked_draws_leave_the_generators_as_they_were():
    devices.seed_torch(1)
    expected = torch.rand(2)
    devices.seed_torch(1)
    with devices.forked_rng(torch.device("cpu")):
        devices.seed_torch(9)
        torch.rand(3)
    assert torch.equal(torch.rand(2), expected)


def test_a_recipe_names_the_devices_it_takes():
    from perdure.recipe.sections import Run

    assert [list(Run(device=name).faults()) for name in ("auto", "cpu", "mps", "cuda", "cuda:1", "xpu:1")] == [[]] * 6
    assert [field for field, _ in Run(device="gpu").faults()] == ["device"]
