"""A study small enough for tests: a network of eight units on two tasks of digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

RECIPE = """stream: {name: class_incremental, data: digits, step: 5, train_per_class: 10, test_per_class: 5}
models: {net: {name: mlp, inputs: 192, hidden: 8}}
method: {name: sgd, epochs: 1}
run: {device: cpu, threads: 1}
"""


class Here:
    """An executor that runs jobs in this process, when they are asked for."""

    def __init__(self, room: int = 1) -> None:
        self.room, self.waiting, self.asked = room, [], []

    def submit(self, jobs) -> None:
        self.waiting += jobs
        self.asked += [job.key for job in jobs]

    def poll(self, seconds: float):
        from perdure.sweeping.performing import perform

        if not self.waiting:
            return []
        job = self.waiting.pop(0)
        return [(job.key, perform(job))]

    @property
    def busy(self) -> bool:
        return False

    def stop(self) -> str:
        self.waiting = []
        return ""

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None: ...


def silent(*_: object) -> None:
    """Tells nobody."""


def write(folder: Path) -> Path:
    """The recipe as `small.yaml`."""
    file = folder / "small.yaml"
    file.write_text(RECIPE)
    return file


def study(folder: Path, **asked: Any) -> Any:
    """A checked plan."""
    from perdure import sweeping
    from perdure.sweeping.study import read_study

    settings = {"run.out": str(folder / "runs"), **asked.pop("settings", {})}
    found, places = read_study(None, {"recipes": (str(write(folder)),), "settings": settings, **asked})
    return sweeping.plan(found, places)
