"""Tensors by name out of a weights file: TorchScript archive, pickled state dict or safetensors.

Knows file formats, and never runs code from a file: TorchScript archives are read as zip files through an
unpickler that knows tensors and inert records only, other pickles through ``torch.load(weights_only=True)``.
Does not know CLIP, or what the names mean.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from perdure.errors import WeightsError
from perdure.files.restricted_pickle import Restricted

Format = Literal["torchscript", "state dict", "safetensors"]

MALFORMED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    EOFError,
    OSError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RuntimeError,
    SafetensorError,
)
"""What the readers of torch, zipfile and safetensors raise on a damaged file."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Format]:
    """The tensors of a weights file on the CPU, in their stored precision, and the file's format.

    A state dict may be wrapped as ``{"state_dict": {...}}`` and its names may begin with ``module.``.

    Raises:
        WeightsError: the file is missing, damaged, a Git LFS pointer, or holds more than tensors.
    """
    check_present(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path), "safetensors"
        except MALFORMED as error:
            raise WeightsError(f"not a safetensors file ({first_line(error)})", where=str(path)) from None
    if _is_torchscript(path):
        return _read_torchscript(path), "torchscript"
    return _read_state_dict(path), "state dict"


def check_present(path: Path) -> None:
    """Raise a WeightsError if `path` is missing, empty or a Git LFS pointer instead of the file itself."""
    if not path.is_file():
        raise WeightsError("no such file", where=str(path))
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(
            "a Git LFS pointer, not the weights", where=str(path), todo="Run `git lfs pull` in its folder."
        )
    if not head:
        raise WeightsError("the file is empty", where=str(path), todo="Download it again.")


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MALFORMED as error:
        raise WeightsError(
            f"cannot be read as tensors only ({first_line(error)})",
            where=str(path),
            expected="a state dict saved by torch.save, a TorchScript archive or safetensors",
            todo="Pickles that hold code are refused; save `model.state_dict()` alone.",
        ) from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"holds a {type(content).__name__}", where=str(path), expected="a state dict (names and tensors)"
        )
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript archive; its code is not even read."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = pickled.removesuffix("data.pkl")
            with archive.open(pickled) as stream:
                module = _TensorsOnly(stream, archive, root).load()
            return dict(_named_tensors(module, ""))
    except (*MALFORMED, StopIteration) as error:
        raise WeightsError(f"not a readable TorchScript archive ({first_line(error)})", where=str(path)) from None


class _Record:
    """Stands for a TorchScript module: its attributes and nothing else."""


class _TensorsOnly(Restricted):
    """Makes tensors and `_Record`s."""

    _DTYPES = {
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "DoubleStorage": torch.float64,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "ShortStorage": torch.int16,
        "ByteStorage": torch.uint8,
        "BoolStorage": torch.bool,
    }

    def __init__(self, stream, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(stream, self._part)
        self._archive, self._root = archive, root

    def _part(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Record
        if module == "torch" and name in self._DTYPES:
            return self._DTYPES[name]
        known = {
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch.jit._pickle", "build_intlist"): list,
            ("torch.jit._pickle", "build_doublelist"): list,
            ("torch.jit._pickle", "build_boollist"): list,
            ("torch.jit._pickle", "build_tensorlist"): list,
        }
        return known.get((module, name))

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _device, _count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown kind of storage {kind!r}")
        raw = bytearray(self._archive.read(f"{self._root}data/{key}"))
        return torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_ignored: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _named_tensors(record: _Record, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(record).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Record):
            yield from _named_tensors(value, f"{prefix}{name}.")


def first_line(error: BaseException) -> str:
    """What an error says, short enough to stand within another message."""
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__
