"""What is wrong with settings, in plain words.

Knows pydantic's kinds of errors and how a value is shown in a message. Does not know what settings there are
(that is `perdure.settings.config`), nor files and line numbers (`perdure.recipe`). Imports neither torch nor pydantic.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from perdure.settings.suggestions import nearest

Keys = tuple[str | int, ...]
"""Keys and positions from the outermost mapping to a value."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong, and where in the mapping."""

    path: Keys
    what: str
    hint: str = ""
    at: Literal["key", "value"] = "value"
    """Whether the key or its value is at fault: where a caret belongs."""


def message(fault: Fault) -> str:
    """A fault in one line, without file and caret."""
    place = ".".join(str(p) for p in fault.path)
    text = fault.what if fault.at == "key" or not place else f"{place}: {fault.what}"
    return f"{text}; {fault.hint}" if fault.hint else text


def display(value: Any) -> str:
    """A YAML value in a message, short."""
    if isinstance(value, Mapping):
        return "a mapping"
    if value is None:
        return "nothing"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "a list"
    text = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) else f"'{value}'"
    return text if len(text) <= 40 else text[:37] + "..."


def expectation(error: Any) -> str:
    """What was expected, in plain words."""
    kind, context = str(error["type"]), error.get("ctx", {})
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _BOUNDS:
        return f"a number {_BOUNDS[kind]} {next(iter(context.values()))}"
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(context["pattern"], f"text of the form {context['pattern']}")
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
    if kind == "missing":
        last = error["loc"][-1]
        return f"`{last}` in it" if isinstance(last, str) else "a longer list"
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    message = str(error["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    return message[:1].lower() + message[1:]


_PATTERNS = {r"^[^{}]*\{\}[^{}]*$": "one {} where the name goes, as in 'a photo of a {}.'"}
"""Of `settings.config.Template`."""
_PLAIN = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "none_required": "null",
    "tuple_type": "a list",
    "list_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "settings by name",
}
_BOUNDS = {
    "greater_than": "above",
    "greater_than_equal": "of at least",
    "less_than": "below",
    "less_than_equal": "of at most",
    "multiple_of": "that is a multiple of",
}


def nearest_choice(words: list[str], found: Any) -> str:
    """The nearest of the choices that a text missed; of one value in place of a list, the list of it."""
    if "a list" in words and isinstance(found, str | int | float) and not isinstance(found, bool):
        return f"did you mean `[{found}]`?"
    options = [o for w in words for o in w.replace(" or ", ", ").split(", ") if o.isidentifier() or "+" in o]
    near = nearest(found, options) if isinstance(found, str) and options else None
    return f"did you mean `{near}`?" if near else ""
