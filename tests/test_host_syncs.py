"""No training step makes the host wait for the device, between the lines of the log."""

from __future__ import annotations

import pytest
import torch

from perdure.runtime import Runtime, Steps
from perdure.runtime.placing import place
from perdure.testing.second_device import second_device
from tests.every_method import METHODS
from tests.host_syncs import Waits, waits

HAS_STEPS = (
    "er",
    "er_ace",
    "derpp",
    "dynamos",
    "dynamos_sgd",
    "agem",
    "si",
    "icarl",
    "finetune",
    "rapf",
    "mg_clip",
    "sefe",
)
KNOWN = {
    "dynamos": 1,  # which replayed images were right decides on the host what the memory keeps
    "sefe": 11,  # transformers looks for image tokens and padding; rows with images and answers' tokens are picked
}
"""Waits of a step that remain, and why."""


class Counting(Runtime):
    """Notes after each step but the first how often it waited."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device="cpu", quiet=True)
        self.device = device
        self.waits, self.each = Waits(), []

    def steps(self, stage, *, total, state, label=""):
        return _Counted(self, stage, total=total, state=state, label=label or stage)


class _Counted(Steps):
    def __iter__(self):
        for i, step in enumerate(super().__iter__()):
            before = self.runtime.waits.places.copy()
            yield step
            if i:
                self.runtime.each.append(self.runtime.waits.places - before)


@pytest.mark.slow
@pytest.mark.parametrize("name", HAS_STEPS)
def test_a_step_does_not_wait_for_the_device(name, monkeypatch):
    monkeypatch.setattr("perdure.run_folder.events.LONGEST", 1e9)
    tiny = METHODS[name]
    stream, method = next(iter(tiny.streams.values()))(), tiny.make()
    with second_device() as device:
        runtime = Counting(device)
        place(method, runtime)
        with waits() as runtime.waits:
            for task in stream.tasks[:2]:
                runtime.task = task.index
                method.learn(task, runtime)
    assert runtime.each
    worst = max(runtime.each, key=lambda places: places.total())
    assert worst.total() <= KNOWN.get(name, 0), worst


def test_what_waits_is_counted():
    def work(far):
        _ = far.sum().item(), far.tolist(), far.cpu(), far[far > 0], far.nonzero(), torch.ones(2).to(far.device)

    with second_device() as device:
        far = torch.ones(3, device=device)
        with waits() as counted:
            work(far)
            torch.ones(2).to(device, non_blocking=True)
            _ = far[torch.zeros(3, dtype=torch.long, device=device)] + far
    assert counted.count == 6, counted.places
