"""Plain values as YAML text that YAML 1.1 and 1.2 read alike.

Knows quoting. Does not know recipes. (``no``, ``012`` and ``1e-05`` mean different things to different
readers; here they are quoted, or written so that they do not.)
"""

from __future__ import annotations

import json
import math
import re
from typing import Any


def dump(tree: dict[str, Any]) -> str:
    """Nested mappings, lists and scalars as a block document."""
    return "\n".join(_lines(tree, "")) + "\n"


def flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(str(k))}: {flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(v) for v in value) + "]"
    return _scalar(value)


def _lines(tree: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in tree.items():
        head = f"{indent}{_scalar(str(key))}:"
        if isinstance(value, dict) and value:
            lines += [head, *_lines(value, indent + "  ")]
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            lines += [head, *(f"{indent}  - {flow(item)}" for item in value)]
        else:
            lines.append(f"{head} {flow(value)}")
    return lines


_WORDS = {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, int):
        return str(value)
    text = str(value)
    bare = re.fullmatch(r"[A-Za-z_/][\w./+-]*( [\w./+-]+)*", text, re.ASCII)
    return text if bare and text.lower() not in _WORDS else _quoted(text)


def _float(value: float) -> str:
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    text = repr(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _quoted(text: str) -> str:
    """Double quotes; what JSON leaves bare but YAML refuses is escaped as well."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
