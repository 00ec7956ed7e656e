"""Batches in a keyed order: from Examples through `preprocess`, or from tensors in memory.

Knows order, shards of processes, loader workers, per-sample seeds and unreadable examples. Does not know
models, losses or what is in a batch. Every batch carries ``position``: int64 [examples], the places of its
examples in the sequence that it was made from, and, where it is made from Examples, ``seed``: int64 [examples],
under which each was prepared. With ``training=False`` that seed hangs on the run's seed and the example's id alone.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from perdure.errors import DataError, UnreadableExample
from perdure.keys import example_seed, key_seed
from perdure.runtime import Runtime
from perdure.types import Batch, Example

ONE_SIZE = "Resize the images of the data set to one size."
"""What to do about examples of several shapes."""

STAY = frozenset({"position", "seed"})
"""Entries of a batch that the CPU reads."""

Preprocess = Callable[[Example, bool], Batch]
Collate = Callable[[list[Any]], Batch]


class Batches(Protocol):
    """What `training.fit` goes through: the same steps in every epoch, in an order of its own."""

    def __len__(self) -> int: ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch | None, float]]:
        """(batch on the device, its share of the step's examples) from step `start` on.

        A process whose part of a step is empty gets (None, 0.0)."""
        ...


class ExampleBatches:
    """Batches of preprocessed Examples.

    Args:
        examples: any sequence of Examples.
        preprocess: ``(example, training) -> dict of tensors`` without a batch axis.
        stage: part of the key of order and augmentation.
        training: passed to `preprocess`; also shuffles, unless `shuffle` says otherwise.
        collate: items -> batch; by default tensors of equal shapes are stacked (DataError where they differ).
    """

    def __init__(
        self,
        examples: Sequence[Example],
        preprocess: Preprocess,
        *,
        batch_size: int,
        runtime: Runtime,
        stage: str,
        training: bool,
        shuffle: bool | None = None,
        drop_last: bool = False,
        collate: Collate | None = None,
    ) -> None:
        self.examples, self.batch_size, self.runtime, self.stage = examples, batch_size, runtime, stage
        self.shuffle = training if shuffle is None else shuffle
        self.drop_last = drop_last
        self._prepare = _Prepare(examples, preprocess, training, (runtime.seed, runtime.task, stage))
        self._collate = _Collate(collate or _Stack(examples), runtime.unreadable == "skip")
        self._keys = _Keys()
        self._loading: DataLoader | None = None

    def __len__(self) -> int:
        whole, rest = divmod(len(self.examples), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch | None, float]]:
        runtime = self.runtime
        runtime.stage, runtime.batch_size = self.stage, self.batch_size
        parts = _parts(self, len(self.examples), epoch)[start:]
        mine = [[(int(i), epoch) for i in part[runtime.rank :: runtime.processes]] for part in parts]
        # in a sharded run a rank without examples of its own runs a peer's with weight 0
        shown = [keys or [(int(part[0]), epoch)] * runtime.sharded for part, keys in zip(parts, mine)]
        loader = iter(self._loader([keys for keys in shown if keys]))
        for part, keys, own in zip(parts, shown, mine):
            if not keys:
                yield None, 0.0
                continue
            batch, skipped = next(loader)
            for name, reason in skipped:
                skip(runtime, name, reason)
            batch = None if batch is None else to_device(batch, runtime.device)
            if batch is None and runtime.sharded:
                raise DataError("a rank's share of a batch is entirely unreadable", expected="readable examples")
            yield batch, len(own) / len(part) if batch is not None else 0.0

    def _loader(self, keys: list[list[tuple[int, int]]]) -> DataLoader:
        """One for all epochs: workers stay, and the next epoch's first batches come without starting them again."""
        self._keys.batches = keys
        if self._loading is None:
            workers = min(self.runtime.workers, len(keys))
            self._loading = DataLoader(
                self._prepare,
                batch_sampler=self._keys,  # type: ignore[arg-type]
                num_workers=workers,
                persistent_workers=workers > 0,
                collate_fn=self._collate,
                pin_memory=self.runtime.device.type == "cuda" and torch.cuda.is_available(),
                multiprocessing_context=_context() if workers else None,
                generator=torch.Generator(),  # else the loader would draw from the global one, wherever it stands
            )
        return self._loading


class _Keys:
    """The batches of the present epoch, as the loader takes them: (position, epoch) of each example."""

    batches: Sequence[list[tuple[int, int]]] = ()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class TensorBatches:
    """Batches of tensors in memory: ``{"features": [examples dim], "label": [examples]}``.

    With ``shuffle=True`` (the default) the order is `runtime.permutation(n, stage, epoch)`.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        batch_size: int,
        runtime: Runtime,
        stage: str,
        shuffle: bool = True,
        drop_last: bool = False,
    ) -> None:
        self.tensors = {name: tensor.to(runtime.device) for name, tensor in tensors.items()}
        self.examples = range(len(next(iter(self.tensors.values()))))
        assert all(len(tensor) == len(self.examples) for tensor in self.tensors.values())
        self.batch_size, self.runtime, self.stage = batch_size, runtime, stage
        self.shuffle, self.drop_last = shuffle, drop_last

    def __len__(self) -> int:
        whole, rest = divmod(len(self.examples), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch | None, float]]:
        runtime = self.runtime
        runtime.stage, runtime.batch_size = self.stage, self.batch_size
        for part in _parts(self, len(self.examples), epoch)[start:]:
            positions = part[runtime.rank :: runtime.processes]
            index = positions.to(runtime.device, non_blocking=True)
            batch = {name: tensor[index] for name, tensor in self.tensors.items()} | {"position": positions}
            yield (batch, len(positions) / len(part)) if len(positions) else (None, 0.0)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on `device`; ``position`` and ``seed`` stay on the CPU."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) and name not in STAY else value
        for name, value in batch.items()
    }


def skip(runtime: Runtime, name: str, reason: str) -> None:
    """Count an unreadable example once, and log it."""
    if name not in runtime.skipped:
        runtime.skipped[name] = reason
        runtime.log("skipped", example=name, reason=reason)


def _parts(batches: Any, n: int, epoch: int) -> list[Tensor]:
    """Positions of each step, over all processes."""
    order = batches.runtime.permutation(n, batches.stage, epoch) if batches.shuffle else torch.arange(n)
    return list(order.split(batches.batch_size))[: len(batches)] if n else []


@dataclass(frozen=True)
class _Prepared:
    item: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class _Skipped:
    name: str
    reason: str


@dataclass(frozen=True)
class _Prepare(Dataset):
    """Runs `preprocess` in a loader worker, with torch's global generator seeded for the sample."""

    examples: Sequence[Example]
    preprocess: Preprocess
    training: bool
    key: tuple[Any, ...]
    """The run's seed, the task and the stage."""

    def __getitem__(self, place: tuple[int, int]) -> _Prepared | _Skipped:
        position, epoch = place
        example = self.examples[position]
        if self.training:
            seed = key_seed(*self.key, "sample", epoch, example.id)
        else:
            seed = example_seed(self.key[0], example.id)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                return _Prepared({**self.preprocess(example, self.training), "position": position}, seed)
        except UnreadableExample as fault:
            return _Skipped(example.id, str(fault))


@dataclass(frozen=True)
class _Collate:
    collate: Collate
    may_skip: bool

    def __call__(self, items: list[Any]) -> tuple[Batch | None, list[tuple[str, str]]]:
        skipped = [(item.name, item.reason) for item in items if isinstance(item, _Skipped)]
        if skipped and not self.may_skip:
            raise DataError(skipped[0][1], todo="Repair or remove it, or set run.unreadable=skip to go on without it.")
        prepared = [item for item in items if isinstance(item, _Prepared)]
        if not prepared:
            return None, skipped
        batch = self.collate([one.item for one in prepared])
        return {**batch, "seed": torch.tensor([one.seed for one in prepared])}, skipped


@dataclass(frozen=True)
class _Stack:
    """Stacks what `preprocess` gave; says which example has another shape."""

    examples: Sequence[Example]

    def __call__(self, items: list[Any]) -> Batch:
        first = items[0]
        for item in items[1:]:
            for name, value in item.items():
                if isinstance(value, Tensor) and value.shape != first[name].shape:
                    raise self._unequal(name, item, first)
        return default_collate(items)

    def _unequal(self, name: str, item: Mapping[str, Any], first: Mapping[str, Any]) -> DataError:
        one, other = self.examples[first["position"]].id, self.examples[item["position"]].id
        return DataError(
            f"'{name}' of shape {list(item[name].shape)}, unlike {list(first[name].shape)} of {one}",
            where=other,
            expected="one shape",
            todo=ONE_SIZE,
        )


def _context() -> str | None:
    """Workers are forked where that exists: models and examples need not be pickled."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else None
