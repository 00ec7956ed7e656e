"""Tiny methods of every kind as runs in use: learned in memory, asked through `perdure.prediction.Loaded`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from perdure.api import Opened
from perdure.files.written_whole import write_json
from perdure.prediction import Loaded
from perdure.runtime import Runtime
from perdure.runtime.placing import place
from perdure.streams import appending
from perdure.types import Evaluation, Stream
from tests.every_method import METHODS


def in_use(folder: Path, name: str, kind: str = "", *, version: int = 1, **settings: Any) -> Loaded:
    """A tiny method that has learned the tiny stream of a kind (by default that of `check_method`)."""
    tiny = METHODS[name]
    stream: Stream = tiny.streams[kind]() if kind else tiny.stream
    method: Any = tiny.make(**settings)
    runtime = Runtime(device="cpu", quiet=True)
    place(method, runtime)
    for task in stream:
        runtime.task = task.index
        method.learn(task, runtime)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tasks.json", appending.known(stream))
    (folder / "recipe.yaml").write_text("made: in memory\n")
    (folder / "checkpoint").mkdir(exist_ok=True)
    (folder / "checkpoint" / "latest.safetensors").write_bytes(b"in memory")
    asked: Any = SimpleNamespace(
        method=SimpleNamespace(name=name), stream=SimpleNamespace(name=stream.name), evaluate=Evaluation(batch_size=2)
    )
    query = stream.query(stream.tasks[-1], after=len(stream) - 1)
    opened = Opened(folder, asked, method, {}, runtime, query, len(stream), len(stream))
    return Loaded(opened, version)


def write_pictures(folder: Path, count: int = 3, size: int = 16) -> list[Path]:
    """Noise, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        pixels = np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths
