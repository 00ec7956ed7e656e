"""Replay memory: a fixed number of slots of past samples, any tensors as columns.

Knows which slots a stream of samples is written to (reservoir, class-balanced), which are drawn, and herding.
Does not know what the columns mean, except that `label` is a class where a policy needs one.

All randomness comes through `Draws`, so that recorded draws can be replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from perdure.errors import DataError, RecipeError

Policy = Literal["reservoir", "class_balanced"]
Columns = dict[str, Tensor]


class Draws:
    """The randomness of a training step: torch's global generator, which `Runtime.steps` seeds for each step."""

    def uniforms(self, *shape: int, of: str) -> Float[Tensor, ...]:
        """Numbers in [0, 1), float64, on the CPU. `of` says what they are for."""
        return torch.rand(*shape, dtype=torch.float64)

    def order(self, n: int, *, of: str) -> Int[Tensor, " n"]:
        """An order of 0..n-1."""
        return torch.randperm(n)


class Memory:
    """Slots of past samples.

    Args:
        capacity: number of slots; 0 keeps nothing.
        policy: `reservoir` keeps each sample of the stream with equal probability; `class_balanced` keeps the
            classes' shares as equal as the stream allows (Chrysakis and Moens 2020).
        replay_unfilled_slots: draw also slots that were passed over while filling (`among` in `add`), which
            hold zeros: what the official code of Dynamos does. By default they are never drawn.
    """

    def __init__(self, capacity: int, *, policy: Policy = "reservoir", replay_unfilled_slots: bool = False) -> None:
        if capacity < 0:
            raise RecipeError(f"a memory of {capacity} slots", where="buffer_size", expected="0 or more")
        self.capacity, self.policy, self.replay_unfilled_slots = capacity, policy, replay_unfilled_slots
        self.columns: Columns = {}
        """Name -> [capacity, ...]; made by the first `add`."""
        self.written = self._room(torch.zeros(0, dtype=torch.bool))
        """Slots that hold a sample."""
        self.seen = 0
        """Samples offered so far."""
        self._balance = _Balance()

    def __len__(self) -> int:
        """Slots that can be drawn."""
        return len(self._drawable())

    def add(self, columns: Columns, draws: Draws, *, among: Bool[Tensor, " samples"] | None = None) -> None:
        """Offer samples in their order; of two that fall into one slot, the later stays.

        Args:
            columns: the same names and shapes in every call.
            among: which samples may be written (`add_if_correct`). The others use up their draw, too.
        """
        count = len(next(iter(columns.values())))
        if self.policy == "reservoir":
            late = max(0, min(count, self.seen + count - self.capacity)) if self.capacity else 0
            slots = reservoir_slots(self.seen, count, self.capacity, draws.uniforms(late, of="reservoir"))
        else:
            uniforms = draws.uniforms(count, 2, of="class_balanced")
            slots = self._balance.slots(columns["label"].tolist(), self.capacity, uniforms.tolist())
        self.seen += count
        wanted = slots >= 0 if among is None else (slots >= 0) & among.cpu()
        last = {slot: i for i, (slot, fits) in enumerate(zip(slots.tolist(), wanted.tolist())) if fits}
        self._write(list(last), list(last.values()), columns)

    def put(self, columns: Columns) -> None:
        """Replace the whole content; at most `capacity` samples."""
        count = len(next(iter(columns.values())))
        assert count <= self.capacity, f"{count} samples for {self.capacity} slots"
        self.columns, self.written = {}, torch.zeros(self.capacity, dtype=torch.bool)
        self._write(list(range(count)), list(range(count)), columns)

    def widen(self, name: str, width: int) -> None:
        """More numbers a sample in a column ``[capacity, numbers]``: minus infinity in what is stored already."""
        column = self.columns.get(name)
        if column is not None and column.shape[1] < width:
            nothing = column.new_full((len(column), width - column.shape[1]), float("-inf"))
            self.columns[name] = torch.cat([column, nothing], dim=1)

    def draw(self, count: int, draws: Draws, *, of: str = "replay") -> Columns | None:
        """Up to `count` samples without repetition; None if there is none."""
        slots = self._drawable()
        if not len(slots):
            return None
        return self.take(slots[draws.order(len(slots), of=of)[:count]])

    def take(self, slots: Int[Tensor, " samples"]) -> Columns:
        """The samples in these slots."""
        return {name: column[slots.to(column.device, non_blocking=True)] for name, column in self.columns.items()}

    def everything(self) -> Columns | None:
        """All samples in the order of slots; None if there is none."""
        slots = self._drawable()
        return self.take(slots) if len(slots) else None

    def state_dict(self) -> dict[str, Any]:
        """Content and counters."""
        return {
            "columns": dict(self.columns),
            "written": self.written,
            "seen": self.seen,
            "balance": self._balance.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore; the capacity must be the same."""
        if len(state["written"]) != self.capacity:
            raise RecipeError(
                f"the saved memory has {len(state['written'])} slots", expected=f"{self.capacity}, as in the recipe"
            )
        self.columns = {name: column.clone() for name, column in state["columns"].items()}
        self.written, self.seen = state["written"].clone(), int(state["seen"])
        self._balance.load_state_dict(state["balance"])

    def _drawable(self) -> Int[Tensor, " slots"]:
        if self.replay_unfilled_slots:
            return torch.arange(min(self.seen, self.capacity))
        return self.written.nonzero()[:, 0]

    def _room(self, like: Tensor) -> Tensor:
        """Zeros, a row a slot.

        Raises:
            RecipeError: the buffer does not fit into memory.
        """
        try:
            return like.new_zeros(self.capacity, *like.shape[1:])
        except (RuntimeError, TypeError):  # no such memory; no such number of 64 bits
            raise RecipeError(
                f"{self.capacity} slots are more than this machine's memory holds",
                where="buffer_size",
                expected="no more slots than the stream has images",
            ) from None

    def _write(self, slots: list[int], rows: list[int], columns: Columns) -> None:
        if not self.capacity:
            return
        if not self.columns:
            self.columns = {name: self._room(value) for name, value in columns.items()}
        assert columns.keys() == self.columns.keys(), (columns.keys(), self.columns.keys())
        for name, value in columns.items():
            column = self.columns[name]
            if value.shape[1:] != column.shape[1:]:
                raise DataError(
                    f"'{name}' of shape {list(value.shape[1:])}, earlier samples have {list(column.shape[1:])}",
                    where="replay memory",
                    expected="one size of images in all tasks",
                )
            if column.device != value.device:  # restored from a file
                column = self.columns[name] = column.to(value.device)
            if slots:
                index = torch.tensor(slots).to(column.device, non_blocking=True)
                picked = value.detach()[torch.tensor(rows).to(value.device, non_blocking=True)]
                column.index_copy_(0, index, picked.to(column.dtype))
        self.written[slots] = True


def reservoir_slots(seen: int, count: int, capacity: int, uniforms: Float[Tensor, " late"]) -> Int[Tensor, " samples"]:
    """Slot of each of the next `count` samples of a stream, -1 for none (Vitter 1985).

    Sample number n (from 0) goes to slot n while there is room, then to ``floor(u (n + 1))`` if that is a slot.

    Args:
        seen: samples offered before.
        uniforms: one number for each sample that comes when all slots have been offered.
    """
    if not capacity:
        return torch.full((count,), -1)
    number = torch.arange(seen, seen + count)
    early = count - len(uniforms)
    drawn = (uniforms * (number[early:] + 1)).long()
    slots = torch.cat([number[:early], drawn])
    return torch.where(slots < capacity, slots, -1)


def herding(features: Float[Tensor, "samples dim"], count: int) -> Int[Tensor, " chosen"]:
    """Samples whose running mean stays closest to the mean of all, in order of choice (iCaRL).

    Step i takes ``argmin_f |mean - (f + sum of the chosen) / (i + 1)|``; no sample twice.
    """
    mean, total = features.mean(dim=0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    chosen: list[Tensor] = []
    for i in range(min(count, len(features))):
        distance = (mean - (features + total) / (i + 1)).norm(dim=1)
        best = torch.where(free, distance, torch.inf).argmin()
        chosen.append(best)
        free[best] = False
        total = total + features[best]
    return torch.stack(chosen) if chosen else torch.empty(0, dtype=torch.long)


class _Balance:
    """Which slot a sample of a class takes so that stored classes stay balanced.

    While there is room, the next slot. Then a class that has never been the largest takes a slot of the
    largest class; one that has, replaces one of its own with probability stored / offered.
    """

    def __init__(self) -> None:
        self.of_slot: list[int] = []
        self.offered: dict[int, int] = {}
        self.was_largest: set[int] = set()

    def slots(self, labels: Sequence[int], capacity: int, uniforms: Sequence[Sequence[float]]) -> Tensor:
        return torch.tensor(
            [self._slot(label, capacity, *pair) for label, pair in zip(labels, uniforms)], dtype=torch.long
        )

    def _slot(self, label: int, capacity: int, accept: float, choice: float) -> int:
        self.offered[label] = self.offered.get(label, 0) + 1
        if len(self.of_slot) < capacity:
            self.of_slot.append(label)
            return len(self.of_slot) - 1
        if not capacity:
            return -1
        stored = {c: self.of_slot.count(c) for c in dict.fromkeys(self.of_slot)}
        most = max(stored.values())
        largest = sorted(c for c, n in stored.items() if n == most)
        self.was_largest.update(largest)
        if label in self.was_largest:
            if accept >= stored.get(label, 0) / self.offered[label]:
                return -1
            victims = [i for i, c in enumerate(self.of_slot) if c == label]
        else:
            victims = [i for i, c in enumerate(self.of_slot) if c in largest]
        slot = victims[int(choice * len(victims))]
        self.of_slot[slot] = label
        return slot

    def state_dict(self) -> dict[str, Any]:
        return {
            "of_slot": list(self.of_slot),
            "offered": [list(pair) for pair in self.offered.items()],
            "was_largest": sorted(self.was_largest),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.of_slot, self.was_largest = list(state["of_slot"]), set(state["was_largest"])
        self.offered = {int(c): int(n) for c, n in state["offered"]}
