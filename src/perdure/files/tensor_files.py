"""What tensors a pretrained folder or hub id holds, read from the heads of its safetensors files alone.

Knows safetensors' header and the hub's cache on this machine. Fetches nothing and reads no tensor; imports no torch.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

MOST = 100_000_000
"""Bytes of a header, as the format allows at most."""


def shapes(weights: str, *, revision: str | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors by name; empty where nothing is on this machine yet, or it is in another form."""
    found: dict[str, tuple[int, ...]] = {}
    for file in _files(weights, revision):
        found |= _header(file)
    return found


def _files(weights: str, revision: str | None) -> Iterator[Path]:
    folder: Path | None = Path(weights).expanduser()
    if not folder.is_dir():
        folder = _cached(weights, revision)
    if folder is not None:
        yield from sorted(folder.glob("*.safetensors"))


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
