"""Text and JSON files that a kill at any moment leaves as they were or as they shall be, never a part.

Knows files that are written aside and renamed. Does not know what they hold; imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from perdure.files.text_files import to_json


def write_json(path: Path, value: Any) -> None:
    """JSON, written aside and renamed, with a final newline."""
    write_text(path, to_json(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """UTF-8 text, written aside and renamed. A lone surrogate, which UTF-8 does not have, is written as JSON does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as file:
        file.write_text(text, encoding="utf-8", errors="backslashreplace")


def _open_mode() -> int:
    """Permissions that this process gives to a new file."""
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


MODE = _open_mode()
"""Some writers make files that their owner alone can read: others read runs and exports, too, where they may."""


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which then takes its place; removed if anything fails."""
    file = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield file
        os.chmod(file, MODE)
        sync(file)
        os.replace(file, path)
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)  # it is there after a failure only


def sync(path: Path) -> None:
    """What was written to a file, or into a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
