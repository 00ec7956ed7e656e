"""Reading a model's JSON reply that is nearly JSON, and refusing one that does not say what was asked for.

Knows texts and `Prompt`. Knows no records and no model.
"""

from __future__ import annotations

import json
import re
from typing import Any

from perdure.prepare.prompts import Prompt


class BadReply(ValueError):
    """What is wrong with a reply, in a few words."""


def read_reply(text: str, prompt: Prompt) -> list[Any]:
    """The field `prompt.key` of each item: a text, or a list of `prompt.count` texts.

    Code fences, words around the JSON, comments, trailing commas and missing commas between objects are forgiven.
    Raises BadReply if objects, numbers or texts are missing, empty or repeated.
    """
    value = loose_json(text)
    if not prompt.indexed:
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        return [_field(value, prompt)]
    rows = value if isinstance(value, list) else [value]
    if len(rows) != prompt.items:
        raise BadReply(f"{len(rows)} objects instead of {prompt.items}")
    found: dict[int, Any] = {}
    for row in rows:
        number = row.get(prompt.indexed) if isinstance(row, dict) else None
        number = int(number) if isinstance(number, str) and number.isdigit() else number
        if not isinstance(number, int) or not 1 <= number <= prompt.items or number in found:
            raise BadReply(f"'{prompt.indexed}' is {number!r}")
        found[number] = _field(row, prompt)
    return [found[i] for i in range(1, prompt.items + 1)]


def loose_json(text: str) -> Any:
    """The first JSON value in a text. Raises BadReply if there is none."""
    start = re.search(r"[\[{]", text)
    if start is None:
        raise BadReply("no JSON in it")
    cleaned = _without_comments(text[start.start() :])
    cleaned = re.sub(r"([}\]])(\s*)(?=[{\[\"])", r"\1,\2", cleaned)  # a comma that is missing
    cleaned = re.sub(r'(")(\s*\n\s*)(?=")', r"\1,\2", cleaned)
    cleaned = re.sub(r",(\s*[}\]])", r"\1", cleaned)  # a comma too many
    try:
        return json.JSONDecoder(strict=False).raw_decode(cleaned)[0]
    except RecursionError:
        raise BadReply("its JSON is nested too deeply") from None
    except ValueError as error:
        raise BadReply(f"no JSON ({error})") from None


def _without_comments(text: str) -> str:
    """Without ``//`` to the end of a line, outside of strings."""
    return re.sub(r'("(?:\\.|[^"\\])*")|//[^\n]*', lambda m: m[1] or "", text)


def _field(row: Any, prompt: Prompt) -> Any:
    value = row.get(prompt.key) if isinstance(row, dict) else None
    if prompt.count:
        texts = value if isinstance(value, list) else []
        cleaned = [t.strip() for t in texts if isinstance(t, str) and t.strip()]
        if len(cleaned) != prompt.count or len({t.lower() for t in cleaned}) != prompt.count:
            raise BadReply(f"'{prompt.key}' is {value!r}, not {prompt.count} different texts")
        return cleaned
    if not isinstance(value, str) or not value.strip():
        raise BadReply(f"'{prompt.key}' is {value!r}, no text")
    return value.strip()
