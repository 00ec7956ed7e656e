"""Frozen features on disk, made once for many methods and runs: keyed by weights, by images and by how these are seen.

Knows examples, a method's ``encode`` and ``encoder``, and files of features. Does not know any method or model. A
method joins in by two functions: ``encode(batch) -> {name: tensor}`` of a batch of its `preprocess`, without gradients,
and ``encoder() -> dict``, all that this depends on beside the images; its predictor then takes what `encode` made in
place of the batch. What learns from frozen features asks `batches` for those of its training examples alike.

A folder holds one folder for each encoder, with files of rows: ``marks`` (uint8 [rows 16], what an image is known by)
and the features. A row is found by the image's content, or the path, size and time of its file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from perdure.loading import ExampleBatches
from perdure.runtime import Runtime
from perdure.types import Batch, Example

SHARD = 64 << 20
"""Bytes of features that are gathered before a file is written."""
MARK = 16
"""Bytes by which an image is known."""


def batches(
    method: Any, examples: Sequence[Example], *, batch_size: int, runtime: Runtime, stage: str
) -> Iterator[Batch | None]:
    """What `method.encode` makes of examples, batch by batch in their order, with ``position`` and ``seed`` (0 of what
    comes from the runtime's cache, where all of a batch are there). None for a batch in which nothing could be read."""
    cache = _cache(method, runtime)
    places = range(len(examples))
    chunks = [list(places[i : i + batch_size]) for i in range(0, len(examples), batch_size)]
    marks = [cache.mark(examples[i]) for i in places] if cache else []
    known = [bool(cache) and all(cache.has(marks[i]) for i in chunk) for chunk in chunks] if cache else []
    missing = [i for n, chunk in enumerate(chunks) if not (known and known[n]) for i in chunk]
    loader = ExampleBatches(
        _Chosen(examples, missing),
        method.preprocess,
        batch_size=batch_size,
        runtime=runtime,
        stage=stage,
        training=False,
        collate=getattr(method, "collate", None),
    )
    fresh = loader.epoch(0)
    for n, chunk in enumerate(chunks):
        if cache and known[n]:
            seeds = torch.zeros(len(chunk), dtype=torch.int64)
            rows = cache.read([marks[i] for i in chunk])
            yield {name: t.to(runtime.device) for name, t in rows.items()} | {
                "position": torch.tensor(chunk),
                "seed": seeds,
            }
            continue
        batch, _ = next(fresh)
        if batch is None:
            yield None
            continue
        with torch.no_grad(), runtime.autocast():
            made = method.encode(batch)
        positions = [missing[i] for i in batch["position"].tolist()]
        if cache:
            cache.add([marks[i] for i in positions], made)
        yield {**made, "position": torch.tensor(positions), "seed": batch["seed"]}
    if cache:
        cache.flush()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """What weights are known by: names, shapes, types and every number."""
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


class Cache:
    """Rows of features of one encoder.

    Args:
        folder: of all encoders.
        key: JSON-ready: all that features depend on beside the image. With ``"random": true`` they depend on the
            example's name, too.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        text = json.dumps(key, sort_keys=True)
        self.named = bool(key.get("random"))
        self.folder = folder / hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "encoder.json"
        if not about.exists():
            about.write_text(text + "\n", encoding="utf-8")
        self.where: dict[bytes, tuple[Path, int]] = {}
        self.waiting: list[tuple[list[bytes], dict[str, Tensor]]] = []
        for path in sorted(self.folder.glob("*.safetensors")):
            self._list(path)

    def mark(self, example: Example) -> bytes:
        """What an example's image is known by."""
        total = hashlib.blake2b(digest_size=MARK)
        if self.named:
            total.update(example.id.encode())
        for name in sorted(example.inputs):
            total.update(name.encode() + b"\0")
            total.update(_content(example.inputs[name]))
        return total.digest()

    def has(self, mark: bytes) -> bool:
        """Whether an image's features are on disk."""
        return mark in self.where

    def read(self, marks: Sequence[bytes]) -> dict[str, Tensor]:
        """The features of images that are all there, in this order."""
        rows: list[dict[str, Tensor]] = [{} for _ in marks]
        by_file: dict[Path, list[int]] = {}
        for i, mark in enumerate(marks):
            by_file.setdefault(self.where[mark][0], []).append(i)
        for path, wanted in by_file.items():
            with safe_open(str(path), framework="pt") as file:
                for name in set(file.keys()) - {"marks"}:
                    part = file.get_slice(name)
                    for i in wanted:
                        at = self.where[marks[i]][1]
                        rows[i][name] = part[at : at + 1]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def add(self, marks: Sequence[bytes], features: Mapping[str, Tensor]) -> None:
        """Keep the features of some images; they are written now and then, and by `flush`."""
        self.waiting.append((list(marks), {name: t.detach().cpu() for name, t in features.items()}))
        if sum(t.nbytes for _, made in self.waiting for t in made.values()) >= SHARD:
            self.flush()

    def flush(self) -> None:
        """Write what waits, into a file of its own: processes do not disturb each other."""
        fresh = [mark for marks, _ in self.waiting for mark in marks]
        if not fresh:
            return
        names = self.waiting[0][1]
        tensors = {name: torch.cat([made[name] for _, made in self.waiting]).contiguous() for name in names}
        tensors["marks"] = torch.frombuffer(bytearray(b"".join(fresh)), dtype=torch.uint8).view(-1, MARK)
        path = self.folder / f"{hashlib.blake2b(b''.join(fresh), digest_size=16).hexdigest()}.safetensors"
        aside = path.with_name(f".{path.name}")
        save_file(tensors, str(aside))
        aside.replace(path)
        self.waiting = []
        self._list(path)

    def _list(self, path: Path) -> None:
        try:
            with safe_open(str(path), framework="pt") as file:
                marks = file.get_tensor("marks").numpy()
        except (SafetensorError, OSError):  # damaged: made again
            return
        for row, mark in enumerate(marks):
            self.where.setdefault(mark.tobytes(), (path, row))


def _cache(method: Any, runtime: Runtime) -> Cache | None:
    """The cache of the runtime, where it has one and one process does the work."""
    if runtime.features is None or runtime.processes > 1:
        return None
    key = dict(method.encoder())
    key |= {"device": runtime.device.type, "precision": runtime.precision}
    return Cache(runtime.features, key | ({"seed": runtime.seed} if key.get("random") else {}))


def _content(value: Any) -> bytes:
    """What an input is known by: its numbers, or the path, size and time of a file."""
    if isinstance(value, Path):
        try:
            found = value.stat()
        except OSError:  # whoever reads it says what is wrong
            return str(value).encode()
        return f"{value.resolve()} {found.st_size} {found.st_mtime_ns}".encode()
    if isinstance(value, Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    return repr(value).encode()


class _Chosen(Sequence[Example]):
    """Some of the examples; none is made before it is asked for."""

    def __init__(self, examples: Sequence[Example], places: Sequence[int]) -> None:
        self.examples, self.places = examples, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        return self.examples[self.places[index]]
