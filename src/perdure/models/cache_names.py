"""The name by which a language model of transformers takes and gives its keys and values.

Knows both names, `cache` and that of versions before it. Does not know what a cache holds.
"""

from __future__ import annotations

import inspect
from typing import Any


def cache_name(model: Any) -> str:
    """The argument of `model` and of its `generate`, and the entry of what it returns."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
