"""One thing by its name, as `perdure show er` shows it: what it is, what it takes, its settings.

Knows the places. Does not know recipes; imports no torch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from perdure.cli._layout import columns, width
from perdure.recipe.text import flow
from perdure.settings import config, registry


def things(name: str) -> dict[str, dict[str, Any]]:
    """Place -> summary, needs, roles and settings of what is called so there; empty if nothing is."""
    return {place: _thing(place, name) for place in registry.PLACES if name in registry.names(place)}


def lines(found: dict[str, dict[str, Any]], name: str) -> list[str]:
    """As text: a block a place."""
    shown: list[str] = []
    for place, thing in found.items():
        head = [f"{registry.SINGULAR[place]} {name}:", thing["summary"]]
        head += [f"needs {thing['needs']}"] if thing["needs"] else []
        roles = [r + (" (optional)" if r in thing["optional_roles"] else "") for r in thing["roles"]]
        head += [f"takes models: {', '.join(roles)}"] if roles else []
        head += [f"answers tasks of kind {', '.join(thing['answers'])}"] if thing["answers"] else []
        shown += [head[0], *(line for text in head[1:] for line in columns([[text]], indent="  ", total=width()))]
        rows = [[key, _value(setting), setting["doc"]] for key, setting in thing["settings"].items()]
        shown += ["", *columns(rows, indent="  ", total=width()), ""]
    return shown[:-1]


def _value(setting: dict[str, Any]) -> str:
    text = "(required)" if setting["required"] else flow(setting["default"])
    return text if len(text) <= 44 else "..."


def _thing(place: registry.Place, name: str) -> dict[str, Any]:
    about = registry.describe(place, name)
    cls, docs = registry.settings(place, name), registry.field_docs(place, name)
    return {
        "summary": about.summary,
        "needs": about.needs.rstrip("."),
        "answers": list(about.answers),
        "roles": list(about.roles),
        "optional_roles": list(about.optional_roles),
        "settings": {field.name: _setting(field) | {"doc": docs.get(field.name, "")} for field in _fields(cls)},
    }


def _fields(cls: Any) -> tuple[dataclasses.Field, ...]:
    return tuple(field for field in dataclasses.fields(cls) if field.init)


def _setting(field: dataclasses.Field) -> dict[str, Any]:
    if field.default is not dataclasses.MISSING:
        return {"required": False, "default": config.plain(field.default)}
    if field.default_factory is not dataclasses.MISSING:
        return {"required": False, "default": config.plain(field.default_factory())}
    return {"required": True, "default": None}
