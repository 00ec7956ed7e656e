"""What the frozen front ends make of a video, kept on disk from epoch to epoch, task to task, and run to run.

Knows entries: a key, float16 tensors, a file each with a checksum, and how much space they may take. Does not know
models, batches or what the tensors mean.

A key is made of the files of a video (path, size, time of change; arrays: their bytes) and of what the front ends
depend on, so that an entry never has to be thrown away for being old. Entries are written aside and renamed; one that
cannot be read counts as absent and is written again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perdure import checkpoint
from perdure.errors import CheckpointError
from perdure.types import Example

SUFFIX = ".safetensors"
MEDIA = ("frames", "wave")
"""Inputs that an entry is made of."""


class FrontEndCache:
    """Entries below a folder, at most `gigabytes` of them; what no longer fits is made anew each time.

    Args:
        folder: where; None: `open` says.
        gigabytes: 10^9 bytes. Counted when the cache is opened, then with every entry that this process writes.
        facts: bytes that tell the front ends apart (weights, sizes, settings).
    """

    def __init__(self, folder: Path | None, *, gigabytes: float, facts: Iterable[bytes]) -> None:
        self.given, self.folder, self.limit = folder, folder, gigabytes * 1e9
        self.facts = _digest(facts)
        self.used = 0.0
        self.counts = {"read": 0, "made": 0, "written": 0}

    def open(self, run: Path | None) -> None:
        """Take the folder that was given, or ``cache`` in the run's; without either nothing is kept."""
        self.folder = self.given or (run / "cache" if run is not None else None)
        self.counts = dict.fromkeys(self.counts, 0)
        self.used = float(sum(_size(path) for path in self.folder.rglob(f"*{SUFFIX}"))) if self.folder else 0.0

    def key(self, example: Example) -> str | None:
        """The entry's name; None where the example has no frames or wave, or a file is missing."""
        if not all(name in example.inputs for name in MEDIA):
            return None
        try:
            parts = [part for name in MEDIA for part in _identity(example.inputs[name])]
        except OSError:
            return None
        return _digest([self.facts.encode(), *parts])

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The entry's tensors; None if there is none or it is damaged."""
        if self.folder is None or not (file := self._file(key)).is_file():
            return None
        try:
            return dict(checkpoint.load(file))
        except CheckpointError:
            return None

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> bool:
        """Keep an entry if there is space."""
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        if self.folder is None or self.used + size > self.limit:
            return False
        file = self._file(key)
        before = _size(file)
        checkpoint.save(file, {name: tensor.contiguous() for name, tensor in tensors.items()})
        self.used += _size(file) - before
        self.counts["written"] += 1
        return True

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}{SUFFIX}"


def small(tensor: Tensor) -> Tensor:
    """As an entry holds it. What is made and not read goes through this too, so that no result depends on the disk."""
    return tensor.detach().to(torch.float16)


def _identity(value: Any) -> list[bytes]:
    """What tells one input from another: of files, path, size and time of change; of arrays, their bytes."""
    if isinstance(value, list | tuple):
        return [part for item in value for part in _identity(item)]
    if isinstance(value, str | os.PathLike):
        path = Path(value).absolute()
        facts = path.stat()
        return [f"{path}\n{facts.st_size}\n{facts.st_mtime_ns}".encode()]
    if hasattr(value, "path") and hasattr(value, "key"):  # one array of a file that holds many
        return [*_identity(value.path), str(value.key).encode()]
    array = np.ascontiguousarray(value)
    return [f"{array.dtype} {array.shape}".encode(), array.tobytes()]


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
