"""Captions without images, one a line: what CapDec learns from.

Needs: your data.

Knows a text file; of a line with tabs (a download list such as CC12M's) the last column is the caption.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perdure.errors import DataError
from perdure.text_files import lines, read_text
from perdure.types import Dataset, Example, Examples


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which file."""

    path: Path
    """A `.txt` or `.tsv`, in UTF-8."""


def read(config: Config) -> Dataset:
    """One training example a line that is not empty; its target is a list of this one caption."""
    path = config.path.expanduser()
    texts = [(i, line.rsplit("\t", 1)[-1].strip()) for i, line in enumerate(lines(read_text(path)))]
    made = [Example(id=f"{path.name}/{i}", inputs={"text": text}, target=[text]) for i, text in texts if text]
    if not made:
        raise DataError("there are no captions", where=str(path))
    return Dataset(name="caption_texts", kind="caption", train=Examples.of(made), facts={"captions": len(made)})
