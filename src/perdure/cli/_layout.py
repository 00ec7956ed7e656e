"""Lines and columns for a terminal, or for a pipe.

Knows widths, and which output is for results. Does not know what is shown.
Colours are not used: what matters is in words.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager, redirect_stdout
from pathlib import Path
from typing import Any

from perdure.errors import printable

NARROWEST = 20


def width() -> int | None:
    """Columns to write in; None where nobody looks at columns (a pipe or a file)."""
    if os.environ.get("COLUMNS", "").isdigit():
        return max(int(os.environ["COLUMNS"]), NARROWEST)
    return max(shutil.get_terminal_size().columns, NARROWEST) if sys.stdout.isatty() else None


def tables_of(folders: Sequence[Path], page: Path) -> str:
    """What a report's tables say: aligned on a terminal; as `page` has them, in Markdown, for a pipe."""
    if not sys.stdout.isatty():
        return page.read_text(encoding="utf-8")
    from perdure.reporting import load, tables
    from perdure.reporting.terminal import terminal

    read = [load.read(folder) for folder in dict.fromkeys(folders)]
    return terminal(tables.groups([run for run in read if run.rows]), width=width() or 80)


def libraries_aside() -> AbstractContextManager[Any]:
    """While work is done, what libraries print lands on standard error: standard output is for results."""
    return redirect_stdout(sys.stderr)


def columns(rows: Sequence[Sequence[str]], *, indent: str = "", total: int | None = None) -> list[str]:
    """Rows in aligned columns; the last column is wrapped under itself, or below the row where it is narrow."""
    rows = [[printable(cell.replace("\n", " "), keep="") for cell in row] for row in rows]
    if not rows:
        return []
    last = len(rows[0]) - 1
    widths = [max(len(row[i]) for row in rows) for i in range(last)]
    lines = []
    for row in rows:
        head = indent + "".join(f"{cell:<{w}}  " for cell, w in zip(row, widths))
        lines += _wrapped(head, row[last], indent, total)
    return lines


def duration(seconds: float) -> str:
    """A time to be read at a glance: ``8.3 s``, ``42 min``, ``3 h 10 min``, ``4 days 2 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"


def text(said: str) -> list[str]:
    """A sentence in lines of the terminal's width."""
    total = width()
    return [said] if total is None else textwrap.wrap(said, total)


def _wrapped(head: str, text: str, indent: str, total: int | None) -> list[str]:
    if total is None or len(head) + len(text) <= total:
        return [(head + text).rstrip()]
    if total - len(head) >= NARROWEST:
        return textwrap.wrap(text, total, initial_indent=head, subsequent_indent=" " * len(head)) or [head]
    inner = indent + "    "
    return [
        *textwrap.wrap(head.rstrip(), total, subsequent_indent=inner, initial_indent=""),
        *textwrap.wrap(text, total, initial_indent=inner, subsequent_indent=inner),
    ]
