"""Text, JSON and JSON-lines files, as other programs write them and as they can read them.

Knows UTF-8 with and without a byte-order mark, line ends, RFC 8259, and what a file can be instead. Does not know what
the contents mean; imports neither torch nor numpy.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perdure.errors import DataError, PerdureError


def read_text(path: Path, *, error: type[PerdureError] = DataError, todo: str = "", most: int | None = None) -> str:
    """A file's text without a byte-order mark.

    Args:
        most: bytes that it may have.

    Raises:
        `error`, which names the file: absent, a folder, a pipe, a device, unreadable, too large, or not UTF-8.
    """
    try:
        mode = path.stat().st_mode  # before it is opened: a pipe waits for whoever writes into it
        if stat.S_ISDIR(mode):
            raise error("this is a folder", where=str(path), expected="a file", todo=todo)
        if not stat.S_ISREG(mode):
            raise error("this is a pipe or a device", where=str(path), expected="a file", todo=todo)
        with path.open("rb") as file:
            data = file.read() if most is None else file.read(most + 1)
        if most is not None and len(data) > most:
            raise error(f"the file is larger than {most} bytes", where=str(path), expected="less text", todo=todo)
        text = data.decode("utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    except FileNotFoundError:
        raise error("there is no such file", where=str(path), todo=todo) from None
    except UnicodeDecodeError as fault:
        raise error(f"this is no UTF-8 text (byte {fault.start}: {fault.reason})", where=str(path), todo=todo) from None
    except (OSError, ValueError) as fault:
        what = getattr(fault, "strerror", None) or str(fault)
        raise error(f"the file cannot be read ({what})", where=str(path), todo=todo) from None


def lines(text: str) -> list[str]:
    r"""Lines by ``\n`` or ``\r\n`` alone: `str.splitlines` also cuts at U+2028 and others, which texts may hold."""
    found = [line.removesuffix("\r") for line in text.split("\n")]
    return found[:-1] if found[-1] == "" else found


def parse_json(text: str, *, where: str, error: type[PerdureError] = DataError, todo: str = "") -> Any:
    """The value of a JSON text; `error` if it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise error("this JSON is nested too deeply", where=where, todo=todo) from None
    except ValueError as fault:
        raise error(f"this is no JSON ({fault})", where=where, todo=todo) from None


def read_json(path: Path, *, error: type[PerdureError] = DataError, todo: str = "") -> Any:
    """The value in a JSON file. Raises as `read_text` and `parse_json`."""
    return parse_json(read_text(path, error=error, todo=todo), where=str(path), error=error, todo=todo)


def read_json_lines(path: Path, *, error: type[PerdureError] = DataError) -> Iterator[tuple[int, Any]]:
    """(number of the line, its value) for each line that is not empty. Raises as `read_json`; the line is named."""
    for number, line in enumerate(lines(read_text(path, error=error)), 1):
        if line.strip():
            yield number, parse_json(line, where=f"{path}, line {number}", error=error)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text. NaN and infinities, which JSON does not have, become null."""
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
