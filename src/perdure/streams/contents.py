"""What an example holds, as a digest: the same bytes are the same example, whatever its name and place.

Knows files, encoded images that are read when asked for, arrays and texts. Does not know what they show.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perdure.errors import DataError
from perdure.types import Example


def digest(example: Example) -> str:
    """blake2b of all inputs; a file counts by its bytes.

    Raises:
        DataError: a file is not there.
    """
    found = hashlib.blake2b(digest_size=16)
    _take(found, dict(example.inputs), example.id)
    return found.hexdigest()


def _take(found: Any, value: Any, name: str) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value):
            found.update(f"\0{key}\0".encode())
            _take(found, value[key], name)
    elif isinstance(value, list | tuple):
        found.update(f"\0{len(value)}\0".encode())
        for item in value:
            _take(found, item, name)
    elif hasattr(value, "read_bytes"):  # a path, a member of a shard, a row of a data set
        found.update(_bytes(value, name))
    elif isinstance(value, bytes):
        found.update(value)
    elif hasattr(value, "__array__"):
        array = np.ascontiguousarray(value)
        found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    elif value is None or isinstance(value, str | bool | int | float):
        found.update(str(value).encode("utf-8", "surrogatepass"))
    else:  # how it prints may hang on where it lies
        raise TypeError(f"{name}: what this {type(value).__name__} holds is not known")


def _bytes(stored: Any, name: str) -> bytes:
    try:
        return stored.read_bytes()
    except OSError as fault:
        where = f"{name}: {stored}" if isinstance(stored, Path) else name
        raise DataError(f"the file cannot be read ({fault.strerror})", where=where) from None
