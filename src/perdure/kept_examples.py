"""Raw Examples as a method's state can hold them: tensors and JSON.

Knows paths, arrays, bytes (an encoded image, also one that is read when asked for), text, numbers, and lists and
mappings of them. Does not know which examples are worth keeping.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perdure.types import Example

_ABSENT: dict[str, Any] = {"absent": True}


def pack(examples: Sequence[Example]) -> dict[str, Any]:
    """Ids, targets, inputs and groups by column: paths stay paths, arrays of one shape become one tensor."""
    items = list(examples)
    names = dict.fromkeys(name for example in items for name in example.inputs)
    return {
        "ids": [example.id for example in items],
        "targets": _column([example.target for example in items]),
        "inputs": {name: _column([example.inputs.get(name, _ABSENT) for example in items]) for name in names},
        **({"groups": groups} if any(groups := [example.group for example in items]) else {}),
    }


def unpack(packed: Mapping[str, Any]) -> list[Example]:
    """The Examples that `pack` was given."""
    targets = _uncolumn(packed["targets"])
    groups = packed.get("groups") or [""] * len(packed["ids"])
    columns = {name: _uncolumn(column) for name, column in packed["inputs"].items()}
    return [
        Example(
            id=name,
            inputs={key: column[i] for key, column in columns.items() if column[i] is not _ABSENT},
            target=targets[i],
            group=groups[i],
        )
        for i, name in enumerate(packed["ids"])
    ]


def files(state: Any) -> Iterator[Path]:
    """Files that a state refers to by their paths, wherever in it examples were packed."""
    if isinstance(state, Mapping):
        for key, value in state.items():
            if key == "paths" and isinstance(value, list):
                yield from map(Path, value)
            elif key == "path" and isinstance(value, str):
                yield Path(value)
            else:
                yield from files(value)
    elif isinstance(state, list):
        for value in state:
            yield from files(value)


def _column(values: list[Any]) -> Any:
    if values and all(isinstance(value, Path) for value in values):
        return {"paths": [str(value) for value in values]}
    arrays = values and all(isinstance(value, np.ndarray) for value in values)
    if arrays and len({(value.shape, value.dtype) for value in values}) == 1:
        return torch.from_numpy(np.stack(values))
    return [_packed(value) for value in values]


def _uncolumn(column: Any) -> list[Any]:
    if isinstance(column, Mapping):
        return [Path(path) for path in column["paths"]]
    if isinstance(column, Tensor):
        return [row.numpy() for row in column]
    return [_unpacked(value) for value in column]


def _packed(value: Any) -> Any:
    if value is _ABSENT:
        return value
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes) or hasattr(value, "read_bytes"):
        data = value if isinstance(value, bytes) else value.read_bytes()
        return {"bytes": torch.from_numpy(np.frombuffer(data, np.uint8).copy())}
    if isinstance(value, Mapping):
        return {"mapping": {key: _packed(inner) for key, inner in value.items()}}
    if isinstance(value, list | tuple):
        return [_packed(inner) for inner in value]
    if hasattr(value, "__array__") and not isinstance(value, Tensor):  # arrays, and those that are read when asked for
        return {"array": torch.from_numpy(np.ascontiguousarray(value))}
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(inner) for inner in value]
    if not isinstance(value, Mapping):
        return value
    match next(iter(value)):
        case "path":
            return Path(value["path"])
        case "bytes":
            return value["bytes"].numpy().tobytes()
        case "array":
            return value["array"].numpy()
        case "mapping":
            return {key: _unpacked(inner) for key, inner in value["mapping"].items()}
    return _ABSENT
