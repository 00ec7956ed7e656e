"""Saving and loading of state: tensors and JSON in one safetensors file, written aside and renamed.

Knows nested dicts, lists, tuples, tensors and JSON values, checksums, and what a damaged or foreign file
looks like. Does not know methods, tasks or runs, and never unpickles.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from perdure.errors import CheckpointError
from perdure.files.written_whole import aside, sync

FORMAT = "perdure-1"


def save(path: Path, state: Any) -> None:
    """Write `state` so that a kill at any moment leaves the old file or the new one, never a part.

    Args:
        path: the file; its folder is made.
        state: nested dicts, lists and tuples of tensors and JSON values; dict keys may be int or str.

    Raises:
        CheckpointError: a value is neither a tensor nor JSON (an object, a function, an array).
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_pack(state, "", tensors))
    metadata = {"format": FORMAT, "tree": tree, "checksum": _checksum(tree, tensors)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as file:
        try:
            save_file(tensors, str(file), metadata=metadata)
        except SafetensorError as fault:  # its texts hide the system's number of the error
            raise _system_error(fault, path) from fault
    sync(path.parent)


def load(path: Path) -> Any:
    """Read what `save` wrote.

    Raises:
        CheckpointError: absent, damaged, a pickle, or not written by perdure.
    """
    if not path.is_file():
        raise CheckpointError("no such checkpoint", where=str(path))
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as fault:
        raise _not_ours(path, fault) from None
    if metadata.get("format") != FORMAT or not {"checksum", "tree"} <= metadata.keys():
        raise CheckpointError("not a checkpoint of perdure", where=str(path))
    if metadata["checksum"] != _checksum(metadata["tree"], tensors):
        raise CheckpointError(
            "damaged (the checksum does not match)", where=str(path), todo="Delete it to start again."
        )
    try:
        return _unpack(json.loads(metadata["tree"]), tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as fault:
        what = f"its tree of values cannot be read ({type(fault).__name__})"
        raise CheckpointError(what, where=str(path), todo="Delete it to start again.") from None


def values(path: Path) -> Any:
    """What `save` wrote, with the names of tensors in their place: no tensor is read. Raises as `load`."""
    if not path.is_file():
        raise CheckpointError("no such checkpoint", where=str(path))
    try:
        with safe_open(str(path), framework="pt") as file:
            tree = json.loads((file.metadata() or {})["tree"])
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as fault:
        raise _not_ours(path, fault) from None
    return tree


def sweep(folder: Path) -> None:
    """Remove what killed processes have left of files that they were writing; nobody else may write there now."""
    for path in folder.rglob(".*"):
        if re.fullmatch(r"\..+\.\d+", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def _not_ours(path: Path, fault: Exception) -> CheckpointError:
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK" or (start[:1] == b"\x80" and start[1:] <= b"\x05"):
        what, expected = "this is a pickle, which can run code when it is loaded", "a safetensors file of perdure"
        return CheckpointError(what, where=str(path), expected=expected)
    return CheckpointError(f"damaged ({fault})", where=str(path), todo="Delete it to start again.")


def _system_error(fault: SafetensorError, path: Path) -> OSError | SafetensorError:
    """``... (os error 28)`` as the OSError that it was."""
    number = re.search(r"\(os error (\d+)\)|code: (\d+)", str(fault))
    code = int(number[1] or number[2]) if number else 0
    return OSError(code, os.strerror(code), str(path)) if code else fault


def stored_bytes(state: Any) -> int:
    """Bytes of all tensors in a state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    values = state.values() if isinstance(state, Mapping) else state
    return sum(map(stored_bytes, values)) if isinstance(state, Mapping | list | tuple) else 0


def stored_in(path: Path) -> int:
    """Bytes of all tensors in a file that `save` wrote."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return path.stat().st_size - 8 - header


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A JSON tree in which tensors are named; `$` marks what JSON itself cannot say."""
    if isinstance(value, Tensor):
        # A copy: safetensors refuses tensors that share memory, and a later step must not move the saved one.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"$tensor": name}
    if isinstance(value, Mapping):
        pairs = [[key, _pack(item, f"{name}/{key}", tensors)] for key, item in value.items()]
        plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
        return dict(pairs) if plain else {"$items": pairs}
    if isinstance(value, list | tuple):
        items = [_pack(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"a state holds a {type(value).__name__} at '{name}'", expected="tensors and JSON values only"
    )


def _unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "$tensor" in tree:
        return tensors[tree["$tensor"]]
    if "$items" in tree:
        return {key: _unpack(item, tensors) for key, item in tree["$items"]}
    if "$tuple" in tree:
        return tuple(_unpack(item, tensors) for item in tree["$tuple"])
    return {key: _unpack(item, tensors) for key, item in tree.items()}


def _checksum(tree: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(tree.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
