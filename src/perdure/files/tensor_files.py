"""What tensors a pretrained folder or hub id holds, read from the heads of its safetensors files alone.

Knows safetensors' header and the hub's cache on this machine. Fetches nothing and reads no tensor; imports no torch.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

MOST = 100_000_000
"""Bytes of a header, as the format allows at most."""


def folder(weights: str, *, revision: str | None = None) -> Path | None:
    """Where a folder or hub id lies on this machine; None where it does not yet."""
    here = Path(weights).expanduser()
    return here if here.is_dir() else _cached(weights, revision)


def shapes(weights: str, *, revision: str | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors by name; empty where nothing is on this machine yet, or it is in another form."""
    found: dict[str, tuple[int, ...]] = {}
    here = folder(weights, revision=revision)
    for file in sorted(here.glob("*.safetensors")) if here is not None else ():
        found |= _header(file)
    return found


def _cached(name: str, revision: str | None) -> Path | None:
    """Where the hub's cache keeps a repository's configuration, and its weights if they are there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # a path that is not there
        return None
    return Path(config).parent if isinstance(config, str) else None


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            said = json.loads(opened.read(length)) if length <= MOST else {}
        return {name: tuple(entry["shape"]) for name, entry in said.items() if name != "__metadata__"}
    except (OSError, ValueError, struct.error, TypeError, KeyError):  # who loads it says what is wrong with it
        return {}
