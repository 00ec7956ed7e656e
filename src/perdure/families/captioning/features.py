"""CLIP features that were made before a run, by `perdure prepare features`.

Knows one file: rows by name for images (ids) and for captions (texts). Does not know how features are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from perdure import checkpoint
from perdure.errors import DataError

Source = Literal["images", "captions"]


def stored(path: Path, source: Source, names: Sequence[str]) -> Float[Tensor, "names dim"]:
    """The rows of these images or captions, in this order; not normalised.

    Raises:
        CheckpointError: no such file, or not one of perdure.
        DataError: the file has no such rows.
    """
    found: Any = checkpoint.load(path).get(source)
    if not found:
        raise DataError(
            f"the file has no features of {source}", where=str(path), todo="Make it: perdure prepare features"
        )
    place = {name: i for i, name in enumerate(found["names"])}
    missing = [name for name in names if name not in place]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} {source} have no features, first {missing[0]!r}",
            where=str(path),
            todo="Make them of the same data: perdure prepare features",
        )
    return found["features"][[place[name] for name in names]]


def store(path: Path, parts: dict[Source, tuple[list[str], Float[Tensor, "names dim"]]]) -> None:
    """Write features with the names of their rows."""
    checkpoint.save(path, {source: {"names": names, "features": rows} for source, (names, rows) in parts.items()})
