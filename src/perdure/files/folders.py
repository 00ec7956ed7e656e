"""Places to write to, looked at before the work whose results go there.

Knows paths, permissions and what else can lie where a folder or a file must be. Does not know what is written.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from perdure.errors import DataError, RecipeError, refused_by_system

LONGEST_NAME = 255
"""Bytes of one part of a path: what the usual file systems hold."""
LONGEST_PATH = 4095
"""Bytes of a whole path on Linux; fewer elsewhere, which the system then says."""


def path_fault(path: str | Path) -> str:
    """What no file system could hold of a path; empty if nothing."""
    text = str(path)
    if not text:
        return "the path is empty"
    if "\0" in text:
        return "the path holds a NUL character"
    encoded = text.encode("utf-8", "surrogatepass")
    longest = max(map(len, encoded.split(b"/")))
    if longest > LONGEST_NAME:
        return f"a name of {longest} bytes in the path; a name has at most {LONGEST_NAME}"
    if len(encoded) > LONGEST_PATH:
        return f"a path of {len(encoded)} bytes; a path has at most {LONGEST_PATH}"
    return ""


def require_folder(path: Path, *, setting: str) -> None:
    """Assert that a folder is there or can be made, and takes files. What is made to see that is removed again.

    Args:
        setting: what names the folder, such as `run.out` or `--out`; said in the message.

    Raises:
        RecipeError: it names the part of the path that is at fault.
    """
    todo = f"Choose another place with {setting}."
    if fault := path_fault(path):
        raise RecipeError(fault, where=setting, expected="a folder's path", todo=todo)
    above = path.absolute()
    try:
        while not os.path.lexists(above):
            above = above.parent
        if not above.is_dir():
            raise RecipeError(f"{above} is no folder", where=str(path), expected="a folder to write to", todo=todo)
        with tempfile.TemporaryDirectory(prefix=".perdure-", dir=above):
            pass
    except OSError as fault:
        refused = refused_by_system(fault)
        what = refused.what if refused else str(fault)
        raise RecipeError(
            f"nothing can be written in {above} ({what})", where=str(path), expected="a folder to write to", todo=todo
        ) from None


def require_empty(path: Path, *, setting: str, force: bool) -> None:
    """As `require_folder`; and DataError if there is something in the folder and `force` is not set."""
    require_folder(path, setting=setting)
    if path.exists() and any(path.iterdir()) and not force:
        raise DataError("is not empty", where=str(path), todo="Name another folder, or add --force.")


def require_file(path: Path, *, setting: str) -> None:
    """Assert that a file can be written, new or in the place of an older one. Raises as `require_folder`."""
    if not path_fault(path) and os.path.lexists(path) and not path.is_file():
        what = "a folder" if path.is_dir() else "no ordinary file"
        raise RecipeError(
            f"this is {what}", where=str(path), expected="a file to write", todo=f"Choose another with {setting}."
        )
    require_folder(path.parent, setting=setting)
    if fault := path_fault(path):
        raise RecipeError(fault, where=setting, expected="a file's path", todo=f"Choose another with {setting}.")
