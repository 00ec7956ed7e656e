"""What processes of a run tell each other: sums of tensors, and wishes.

Knows torch's process groups. Does not know what the tensors are, nor where a run takes place.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

BUCKET = 25 * 2**20
"""Bytes that travel at once."""


class Agreement:
    """What any process wishes, known to all at the same step.

    `ask` after a step, `answers` after the next: in between the flags travel, on the CPU, so that nobody waits and no
    GPU is asked. All processes must make the same calls.

    Args:
        processes: how many there are.
        wishes: flags of this process at the moment.
    """

    def __init__(self, processes: int, wishes: Callable[[], Sequence[bool]]) -> None:
        self.alone, self.wishes = processes == 1, wishes
        self._asked: tuple[Tensor, Any] | None = None

    def ask(self) -> None:
        """Send this process's wishes."""
        if not self.alone:
            flags = torch.tensor(self.wishes(), dtype=torch.uint8)
            work = torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, _flags_group(), async_op=True)
            self._asked = flags, work

    def answers(self) -> Sequence[bool]:
        """What any process wished when it was last asked; one process alone is asked now."""
        if self.alone:
            return self.wishes()
        if self._asked is None:
            return (False,) * len(self.wishes())
        (flags, work), self._asked = self._asked, None
        work.wait()
        return [bool(flag) for flag in flags.tolist()]

    def settle(self) -> None:
        """Wait for flags that nobody asks for any more."""
        if self._asked is not None:
            self._asked[1].wait()
            self._asked = None


@cache
def _flags_group() -> Any:
    """Flags travel beside the tensors: not in their order, and never through a GPU."""
    atexit.register(_leave)
    return torch.distributed.new_group(backend="gloo")


def _leave() -> None:
    """End the groups' threads before the interpreter ends: one that then still lets go of a tensor aborts the process.

    A group's threads end with its last reference.
    """
    _flags_group.cache_clear()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over processes of tensors that have the same shapes in all: views of a few flat buckets."""
    sent = []
    for places in _buckets(tensors, BUCKET):
        flat = torch.cat([tensors[i].reshape(-1) for i in places])
        sent.append((places, flat, torch.distributed.all_reduce(flat, async_op=True)))
    sums = list(tensors)
    for places, flat, work in sent:
        work.wait()
        for i, part in zip(places, flat.split([tensors[i].numel() for i in places])):
            sums[i] = part.view(tensors[i].shape)
    return sums


def _buckets(tensors: Sequence[Tensor], size: int) -> list[list[int]]:
    """Places of tensors of one type and device, as many as fill `size` bytes."""
    full: list[list[int]] = []
    open_ones: dict[Any, tuple[list[int], int]] = {}
    for i, tensor in enumerate(tensors):
        places, held = open_ones.pop((tensor.dtype, tensor.device), ([], 0))
        places.append(i)
        held += tensor.nbytes
        if held >= size:
            full.append(places)
        else:
            open_ones[tensor.dtype, tensor.device] = places, held
    return full + [places for places, _ in open_ones.values()]
