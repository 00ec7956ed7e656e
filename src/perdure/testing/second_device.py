"""A second device without a GPU: marked CPU memory, and an error where an operation mixes it with memory that is not.

Inside `second_device` the device `DEVICE` exists. Its tensors are ordinary CPU tensors in marked storage, so every
value is real and every kernel runs; they say that they are on `DEVICE`, and a tensor that was left behind on the CPU
raises as it does beside a GPU. What CUDA lets an operation mix is let through: numbers without dimensions, indices on
the CPU, copies.

Knows tensors, storages and how torch makes and moves them. Does not know methods, models or runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch._C._nn import _parse_to  # type: ignore[attr-defined]
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

DEVICE = torch.device("cuda", 0)
"""The second device. Code that asks for a GPU takes the way of one."""

CPU = torch.device("cpu")
_FACTORIES = [
    "arange",
    "as_tensor",
    "empty",
    "empty_like",
    "empty_strided",
    "eye",
    "full",
    "full_like",
    "hann_window",
    "linspace",
    "logspace",
    "normal",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "randperm",
    "scalar_tensor",
    "tensor",
    "tril_indices",
    "triu_indices",
    "zeros",
    "zeros_like",
]
_NEW = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
_COPIES = ("aten::copy_", "aten::_to_copy")


@contextlib.contextmanager
def second_device() -> Iterator[torch.device]:
    """Context in which `DEVICE` exists. Tensors made before are on the CPU; those on it must not be used after.

    Raises:
        RuntimeError: an operation mixes devices, or draws on `DEVICE` from a generator of the CPU.
        TypeError: a tensor on it is taken for a NumPy array.
    """
    _device_constructors()  # remembers torch's own factories
    marks = _Marks()
    with contextlib.ExitStack() as stack:
        for owner, name, made in _patches(marks):
            stack.enter_context(mock.patch.object(owner, name, made))
        stack.enter_context(_Mixing(marks))
        yield DEVICE


class _Marks:
    """Which storages lie on the second device. Weak references keep a freed storage's address from another's use."""

    def __init__(self) -> None:
        self.of: dict[int, tuple[StorageWeakRef, bool]] = {}
        """By address: True there, False still open (torch made it within an operation: it follows its neighbors)."""
        self.room = 10_000

    def has(self, tensor: Tensor) -> bool:
        return self.of.get(_storage(tensor)._cdata, (None, False))[1]

    def is_open(self, tensor: Tensor) -> bool:
        return not self.of.get(_storage(tensor)._cdata, (None, True))[1]

    def set(self, tensor: Tensor, there: bool | None) -> Tensor:
        """On the second device, on the CPU, or (None) still open."""
        storage = _storage(tensor)
        if there is False:
            self.of.pop(storage._cdata, None)
        else:
            self.of[storage._cdata] = StorageWeakRef(storage), bool(there)
            if len(self.of) > self.room:
                self.of = {key: kept for key, kept in self.of.items() if not kept[0].expired()}
                self.room = max(10_000, 2 * len(self.of))
        return tensor

    def moved(self, tensor: Tensor, there: bool, dtype: torch.dtype | None, copy: bool) -> Tensor:
        """As `Tensor.to`: the same tensor if nothing changes."""
        if self.has(tensor) == there and not copy:
            return tensor if dtype in (None, tensor.dtype) else _to(tensor, dtype)
        return self.set(_to(tensor, dtype or tensor.dtype, copy=True), there)


class _Mixing(TorchDispatchMode):
    """Looks at the tensors of every operation, in backward passes too, and marks what it gives."""

    def __init__(self, marks: _Marks) -> None:
        super().__init__()
        self.marks = marks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        found = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        there = [t for t in found if self.marks.has(t)]
        name = func._schema.name
        if name in _COPIES:
            made = func(*args, **kwargs)
            if name == "aten::_to_copy" and there:
                self.marks.set(made, True)
            return made
        if there:
            for tensor in found:
                if self.marks.is_open(tensor):
                    self.marks.set(tensor, True)
            self._check(func, name, args, kwargs, found)
        made = func(*args, **kwargs)
        if there or not found:
            for tensor in tree_iter(made):
                if isinstance(tensor, Tensor):
                    self.marks.set(tensor, True if there else None)
        return made

    def _check(self, func: Any, name: str, args: Any, kwargs: Mapping[str, Any], found: list[Tensor]) -> None:
        if name in _INDEXED and self.marks.has(args[0]):
            indices = {id(t) for t in args[1] if t is not None}
            found = [t for t in found if id(t) not in indices]
        written = (args[0],) if name.endswith("_") and isinstance(args[0], Tensor) else ()
        strict = {id(t) for t in (*written, kwargs.get("out")) if isinstance(t, Tensor)}
        wrong = [t for t in found if not self.marks.has(t) and (t.ndim > 0 or id(t) in strict)]
        if wrong:
            shapes = ", ".join(f"{'cuda:0' if self.marks.has(t) else 'cpu'} {list(t.shape)}" for t in found)
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {shapes}")
        if kwargs.get("generator") is not None:
            raise RuntimeError(f"Expected a 'cuda' device type for generator but {func} found 'cpu'")


def _patches(marks: _Marks) -> Iterator[tuple[Any, str, Any]]:
    """What torch's Python side says of devices, moves and makes: owner, name, and what stands there meanwhile."""
    yield Tensor, "device", property(lambda t: DEVICE if marks.has(t) else _device(t))
    yield Tensor, "is_cuda", property(lambda t: marks.has(t))
    yield Tensor, "is_cpu", property(lambda t: _device(t).type == "cpu" and not marks.has(t))
    yield Tensor, "get_device", lambda t: 0 if marks.has(t) else -1
    yield Tensor, "cpu", lambda t, **_: marks.moved(t, False, None, False)
    yield Tensor, "cuda", lambda t, *_, **__: marks.moved(t, True, None, False)
    yield Tensor, "pin_memory", lambda t, *_: t
    yield Tensor, "to", _moving(marks)
    yield Tensor, "numpy", _only_on_cpu(marks, Tensor.numpy)
    yield Tensor, "__array__", _only_on_cpu(marks, Tensor.__array__)
    yield Tensor, "__deepcopy__", _copying(marks, Tensor.__deepcopy__)
    for name in _NEW:
        yield Tensor, name, _making(marks, getattr(Tensor, name))
    for name in _FACTORIES:
        yield torch, name, _making(marks, getattr(torch, name))
    yield torch.nn.RNNBase, "flatten_parameters", lambda _: None
    yield torch.cuda, "get_rng_state", lambda *_: torch.get_rng_state()
    yield torch.cuda, "set_rng_state", lambda *_: None
    yield torch.cuda, "device", lambda *_: contextlib.nullcontext()


def _moving(marks: _Marks) -> Callable[..., Tensor]:
    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if (args and isinstance(args[0], Tensor)) or "other" in kwargs:
            other = kwargs.pop("other", None) if "other" in kwargs else args[0]
            return marks.moved(tensor, marks.has(other), other.dtype, kwargs.get("copy", False))
        device, dtype, _, memory_format = _parse_to(*args, **_without_copy(kwargs))
        if device is None or device.type not in ("cpu", "cuda"):
            return _to(tensor, *args, **kwargs)
        made = marks.moved(tensor, device.type == "cuda", dtype, kwargs.get("copy", False))
        return made if memory_format is None else _to(made, memory_format=memory_format)

    return to


def _making(marks: _Marks, make: Callable[..., Tensor]) -> Callable[..., Any]:
    """A factory that understands `DEVICE`."""

    def made(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("device") is None:
            result = make(*args, **kwargs)
            return marks.set(result, False) if marks.is_open(result) else result
        device = torch.device(kwargs["device"])
        if device.type not in ("cpu", "cuda"):
            return make(*args, **kwargs)
        there = device.type == "cuda"
        if there and kwargs.get("generator") is not None:
            raise RuntimeError(f"Expected a 'cuda' device type for generator but {make.__name__} found 'cpu'")
        result = make(*args, **{**kwargs, "device": "cpu"})
        given = [t for t in args if isinstance(t, Tensor) and _storage(t)._cdata == _storage(result)._cdata]
        return marks.set(_to(result, result.dtype, copy=True) if given else result, there)

    return made


def _only_on_cpu(marks: _Marks, take: Callable[..., Any]) -> Callable[..., Any]:
    def taken(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if marks.has(tensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return take(tensor, *args, **kwargs)

    return taken


def _copying(marks: _Marks, copy: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def copied(tensor: Tensor, memo: Any) -> Tensor:
        return marks.set(copy(tensor, memo), marks.has(tensor))

    return copied


def _without_copy(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "copy"}


def _storage(tensor: Tensor) -> Any:
    while is_functorch_wrapped_tensor(tensor):
        tensor = get_unwrapped(tensor)
    return (tensor.values() if tensor.layout == torch.sparse_csr else tensor).untyped_storage()


_device = torch._C.TensorBase.device.__get__  # type: ignore[attr-defined]
_to = torch._C.TensorBase.to
