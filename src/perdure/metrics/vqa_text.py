"""The answer normaliser of VQA and TextVQA: case, punctuation, numbers, articles, contractions.

Knows text alone; its word lists are the public VQA tables in ``vqa_contractions.json``.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any


def normalize_answer(text: str, *, official: bool = False) -> str:
    """An answer in the form in which two answers are compared: ``"The 10,000 cats."`` -> ``"10000 cats"``.

    A punctuation mark beside a space is deleted wherever it occurs, otherwise it becomes a space; periods stay
    before digits only. Officially at most 32 periods are removed (a flag is passed in the place of a count).
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    text = re.sub(r"\.(?!\d)", "", _drop_punctuation(text), count=32 if official else 0)
    tables = _tables()
    words = (tables["number_words"].get(word, word) for word in text.split())
    return " ".join(tables["contractions"].get(w, w) for w in words if w not in tables["articles"])


def _drop_punctuation(text: str) -> str:
    """Marks are looked for in the text as it was given, and replaced one after another in the result."""
    result = text
    for mark in _tables()["punctuation"]:
        beside_space = mark + " " in text or " " + mark in text
        result = result.replace(mark, "" if beside_space else " ")
    return result


@cache
def _tables() -> dict[str, Any]:
    return json.loads(files("perdure.metrics").joinpath("vqa_contractions.json").read_text("utf-8"))
