"""Top-level keys of a recipe that are none, and the full names of settings that lack their section.

Knows the sections' names and the settings of what they name. Does not know files or how faults are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from perdure.recipe.sections import Run
from perdure.settings import config, registry
from perdure.settings.faults import Fault
from perdure.settings.suggestions import nearest
from perdure.types import Evaluation, Merge

SECTIONS = ("base", "stream", "models", "method", "evaluate", "merge", "run", "expect")


def unknown_sections(values: Mapping[str, Any]) -> list[Fault]:
    """Top-level keys that are none; a setting without its section (``lr=1``) gets its full name."""
    faults = []
    for key in values:
        if key in SECTIONS:
            continue
        full = _full_names(values, key)
        if full and not isinstance(values[key], Mapping):
            hint = f"write `{full[0]}`" if len(full) == 1 else "write one of: " + ", ".join(full)
            what = f"`{key}` lacks its section"
        else:
            near = nearest(key, [*SECTIONS, *_leaves(values)])
            near = near if near is None or near in SECTIONS else _full_names(values, near)[0]
            what = f"unknown section `{key}`"
            hint = f"did you mean `{near}`?" if near else f"known: {', '.join(SECTIONS)}"
        faults.append(Fault(path=(key,), what=what, hint=hint, at="key"))
    return faults


def _full_names(values: Mapping[str, Any], leaf: str) -> list[str]:
    return _leaves(values).get(leaf, [])


def _leaves(values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of settings without their sections -> full names, as far as the recipe names known things."""
    found: dict[str, list[str]] = {}

    def note(cls: type, prefix: str, stated: Any) -> None:
        for key, hint in config.field_types(cls).items():
            found.setdefault(key, []).append(f"{prefix}.{key}")
            if (place := config.named_place(hint)) and isinstance(stated, Mapping):
                look(place, stated.get(key), f"{prefix}.{key}")

    def look(place: str, value: Any, prefix: str) -> None:
        name = value.get("name") if isinstance(value, Mapping) else value
        if isinstance(name, str) and registry.known(cast(registry.Place, place), name):
            note(registry.settings(cast(registry.Place, place), name), prefix, value)

    look("streams", values.get("stream"), "stream")
    look("methods", values.get("method"), "method")
    models = values.get("models")
    for role, value in models.items() if isinstance(models, Mapping) else ():
        look("models", value, f"models.{role}")
    note(Evaluation, "evaluate", None)
    note(Merge, "merge", None)
    note(Run, "run", None)
    return found
