"""Captions without images, one a line: what CapDec learns from.

Needs: your data.

Knows a text file; of a line with tabs (a download list such as CC12M's) the last column is the caption.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perdure.errors import DataError
from perdure.types import Dataset, Example, Examples


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which file."""

    path: Path
    """A `.txt` or `.tsv`, in UTF-8."""


def read(config: Config) -> Dataset:
    """One training example a line that is not empty; its target is a list of this one caption."""
    path = config.path.expanduser()
    if not path.is_file():
        raise DataError("there is no such file", where=str(path))
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"this is no UTF-8 text ({error.reason})", where=str(path)) from None
    texts = [(i, line.rsplit("\t", 1)[-1].strip()) for i, line in enumerate(lines)]
    made = [Example(id=f"{path.name}/{i}", inputs={"text": text}, target=[text]) for i, text in texts if text]
    if not made:
        raise DataError("there are no captions", where=str(path))
    return Dataset(name="caption_texts", kind="caption", train=Examples.of(made), facts={"captions": len(made)})
