"""Counts what makes the host wait for a device: values that are read, masks that are counted, copies that block.

Works within `perdure.testing.second_device`, so without a GPU. Knows which operations of torch wait for CUDA.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS = {
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2"),
    *("aten::unique_dim", "aten::unique_consecutive", "aten::repeat_interleave"),
}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
ROOT = str(Path(__file__).parents[1])


class Waits(TorchDispatchMode):
    """Places in the code that wait, with how often."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return sum(self.places.values())

    def add(self, what: str) -> None:
        own = [f for f in traceback.extract_stack() if f.filename.startswith(ROOT) and f.filename != __file__]
        own = [f for f in own if "/testing/second_device" not in f.filename]
        frame = own[-1]
        if any(name in (frame.line or "") for name in ("one_hot(", "clip_grad_norm_(")):  # such only on a CPU
            return
        self.places[f"{Path(frame.filename).name}:{frame.lineno} {what}: {frame.line}"] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        sized = name == "aten::repeat_interleave" and (kwargs or {}).get("output_size") is not None
        if name in READS and not sized and any(isinstance(a, Tensor) and a.is_cuda for a in args):
            self.add(name.removeprefix("aten::"))
        elif name in INDEXED and args[0].is_cuda:
            if any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
                self.add("index by mask")
            if any(i is not None and not i.is_cuda and i.ndim for i in args[1]):
                self.add("index from the CPU")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def waits() -> Iterator[Waits]:
    """Context in which waiting is counted; to be entered within `second_device`."""
    counted = Waits()

    def watched(call, non_blocking=lambda args, kwargs: False):
        def moved(tensor, *args, **kwargs):
            made = call(tensor, *args, **kwargs)
            if tensor.is_cuda and not made.is_cuda:
                counted.add("copy to the CPU")
            elif made.is_cuda and not tensor.is_cuda and not non_blocking(args, kwargs):
                counted.add("blocking copy to the device")
            return made

        return moved

    def listed(tensor):
        if tensor.is_cuda:
            counted.add("tolist")
        return plain_list(tensor)

    def from_values(make):
        def made(*args, **kwargs):
            result = make(*args, **kwargs)
            if result.is_cuda and not any(isinstance(a, Tensor) and a.is_cuda for a in args[:1]):
                counted.add("values to the device")
            return result

        return made

    plain_list = Tensor.tolist
    with contextlib.ExitStack() as stack:
        patches = [
            (
                Tensor,
                "to",
                watched(Tensor.to, lambda args, kwargs: kwargs.get("non_blocking") or any(a is True for a in args)),
            ),
            (Tensor, "cpu", watched(Tensor.cpu)),
            (Tensor, "cuda", watched(Tensor.cuda)),
            (Tensor, "tolist", listed),
            *((torch, name, from_values(getattr(torch, name))) for name in ("tensor", "as_tensor")),
        ]
        for owner, name, made in patches:
            stack.enter_context(mock.patch.object(owner, name, made))
        stack.enter_context(counted)
        yield counted
