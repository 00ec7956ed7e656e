"""YAML of people and of other programs, within limits: size, depth, and values that aliases multiply.

Knows ruamel's nodes. Does not know recipes, nor lines and carets (`perdure.recipe.source`).
"""

from __future__ import annotations

import re
from typing import Any

from perdure.errors import DataError

MOST_BYTES = 2**19
"""Of a file; more than any recipe has."""
MOST_VALUES = 20_000
"""More values than any recipe has: aliases of aliases would fill the memory."""
DEEPEST = 60
"""Mappings and lists in one another."""


def plain_yaml(text: str, *, where: str) -> Any:
    """The value of a YAML text.

    Raises:
        DataError: it is no YAML, nested too deeply, or has too many values.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if fault := text_fault(text):
        raise DataError(fault, where=where)
    if re.search(r"<<\s*:", text):
        raise DataError("merge keys (<<) are not read", where=where, expected="settings by name")
    try:
        found = YAML(typ="safe").load(text)
    except RecursionError:
        raise DataError("nested too deeply", where=where) from None
    except (YAMLError, ValueError, TypeError, AttributeError, IndexError, AssertionError, KeyError) as error:
        # ruamel lets a few of these out of broken directives and tags.
        raise DataError(f"damaged YAML ({(str(error).splitlines() or [''])[0]})", where=where) from None
    if fault := _fault(found):
        raise DataError(fault, where=where)
    return found


def text_fault(text: str) -> str:
    """What of a text would keep ruamel busy for minutes before it says so; empty if nothing."""
    depth = 0
    for bracket in re.findall(r"[\[{\]}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > 20 * DEEPEST:  # far beyond what quoted texts may hold
            return "nested too deeply"
    return ""


def _fault(value: Any) -> str:
    """What is beyond a limit; empty if nothing."""
    left = MOST_VALUES
    todo = [(value, 0)]
    while todo:
        item, depth = todo.pop()
        left -= 1
        if depth > DEEPEST:
            return "nested too deeply, or a value that contains itself"
        if left < 0:
            return f"more than {MOST_VALUES} values"
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list | set | tuple) else ()
        todo += [(each, depth + 1) for each in inner]
    return ""
