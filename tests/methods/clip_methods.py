"""A tiny real CLIP on disk and a tiny stream, for the tests of methods that classify with CLIP."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tiny_clip import tiny_clip

from perdure.models.clip import Clip, load
from perdure.models.clip import Config as ClipConfig
from perdure.runtime import Runtime
from perdure.testing import tiny_stream
from perdure.types import Stream, Task

TEMPLATE = "a photo of {}."


@cache
def _loaded() -> Clip:
    with TemporaryDirectory() as folder:
        return load(ClipConfig(weights=str(tiny_clip(Path(folder), context=32))))


def fresh_clip() -> Clip:
    """A copy of a tiny CLIP that was loaded from disk once."""
    return deepcopy(_loaded())


def other_clip() -> Clip:
    """A tiny CLIP that scores a little otherwise."""
    clip = fresh_clip()
    weight = clip.model.text_projection.weight
    with torch.no_grad():
        weight.add_(0.3 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return clip


def opposed_clip() -> Clip:
    """A tiny CLIP whose cosines have the other sign: positive ones."""
    clip = fresh_clip()
    with torch.no_grad():
        clip.model.text_projection.weight.neg_()
    return clip


def small_stream(**settings: int) -> Stream:
    return tiny_stream(**{"tasks": 2, "train": 4, "test": 2, "size": 16, **settings})


class Recording(Runtime):
    """A Runtime on the CPU that keeps the events and the losses of each stage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(device="cpu", quiet=True, **settings)
        self.events: list[tuple[str, dict[str, Any]]] = []

    def log(self, event: str, **values: Any) -> None:
        self.events.append((event, values))
        super().log(event, **values)

    def last(self, event: str) -> dict[str, Any]:
        return [values for name, values in self.events if name == event][-1]


def learn(method: Any, task: Task, runtime: Runtime | None = None) -> Runtime:
    runtime = runtime or Recording()
    runtime.task = task.index
    method.learn(task, runtime)
    return runtime
