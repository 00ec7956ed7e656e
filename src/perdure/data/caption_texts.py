"""Captions without images, one a line: what CapDec learns from.

Needs: your data.

Knows a text file, and tables by tabs (download lists such as those of Conceptual Captions), whose column of captions
is the one that a head calls so, that a setting names, or that alone holds texts: lists differ in its place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from perdure.errors import DataError
from perdure.files.text_files import lines, read_text
from perdure.types import Dataset, Example, Examples

HEADS = ("caption", "captions", "text", "sentence")
"""What a head calls the column of captions."""
_NO_TEXT = re.compile(r"(?:\w+://|www\.)\S*|[^\s]+\.(?:jpe?g|png|gif|webp|bmp|tiff?)|[\d.,:+-]+|[0-9a-f]{16,}", re.I)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which file."""

    path: Path
    """A `.txt` or `.tsv`, in UTF-8."""
    column: str | Annotated[int, Field(ge=1)] = ""
    """Of a table by tabs: the captions' column by its name in the head, or by its number from 1 where there is no
    head; empty: the one that the head calls caption or text, or that alone holds texts."""


def read(config: Config) -> Dataset:
    """One training example a line that is not empty; its target is a list of this one caption.

    Raises:
        DataError: rows of different widths, or a column of captions that is not clear or holds addresses.
    """
    path = config.path.expanduser()
    rows = [(i, line.split("\t")) for i, line in enumerate(lines(read_text(path))) if line.strip()]
    if not rows:
        raise DataError("there are no captions", where=str(path))
    _require_table(rows, path)
    head = [cell.strip().lower() for cell in rows[0][1]]
    column, headed = _column(config.column, head, [cells for _, cells in rows], path)
    texts = [(i, cells[column].strip()) for i, cells in rows[headed:]]
    _require_texts([text for _, text in texts], path)
    made = [Example(id=f"{path.name}/{i}", inputs={"text": text}, target=[text]) for i, text in texts if text]
    if not made:
        raise DataError("there are no captions", where=str(path))
    return Dataset(name="caption_texts", kind="caption", train=Examples.of(made), facts={"captions": len(made)})


def _require_table(rows: Sequence[tuple[int, list[str]]], path: Path) -> None:
    width = len(rows[0][1])
    for i, cells in rows:
        if len(cells) != width:
            raise DataError(
                f"{len(cells)} columns by tabs",
                where=f"{path}, line {i + 1}",
                expected=f"{width}, as in the first line",
                todo="Put a space for each tab within a caption.",
            )


def _column(asked: str | int, head: list[str], rows: list[list[str]], path: Path) -> tuple[int, bool]:
    """The column of captions, from 0, and whether the first line is a head."""
    if isinstance(asked, int):
        if asked > len(head):
            raise DataError(f"`column` is {asked}", where=str(path), expected=f"a number from 1 to {len(head)}")
        return asked - 1, False
    named = [i for i, cell in enumerate(head) if (cell == asked.lower() if asked else cell in HEADS)]
    if len(named) == 1 and (asked or len(head) > 1):
        return named[0], True
    if asked:
        raise DataError(f"no column {asked!r}", where=f"{path}, line 1", expected=f"one of {', '.join(head)}")
    texts = [i for i in range(len(head)) if len(head) == 1 or not _no_texts([row[i] for row in rows])]
    if len(texts) != 1 or len(named) > 1:
        raise DataError(
            f"{len(texts)} of {len(head)} columns hold texts",
            where=str(path),
            expected="one column of captions",
            todo="Say which it is: set `column` to its number (from 1), or to its name in the head.",
        )
    return texts[0], False


def _require_texts(texts: Sequence[str], path: Path) -> None:
    if _no_texts(texts):
        raise DataError(
            f"{texts[0]!r} and others are taken for captions",
            where=str(path),
            expected="texts; most are addresses, file names or numbers",
            todo="Set `column` to the column of the captions, or `path` to another file.",
        )


def _no_texts(cells: Sequence[str]) -> bool:
    """Whether most of these are addresses, file names or numbers."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    return 2 * sum(_NO_TEXT.fullmatch(cell) is not None for cell in filled) > len(filled)
