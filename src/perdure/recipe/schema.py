"""The JSON Schema of a recipe, by which editors complete and check it.

Knows JSON Schema and where settings are documented. Does not check anything itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from perdure.recipe.sections import Expect, Recipe, Run
from perdure.settings import config, registry
from perdure.settings.source import docs_of
from perdure.types import Evaluation, Merge


def json_schema(recipe: Recipe) -> dict[str, Any]:
    """The schema of recipes with the names (method, models, stream, data) of this one."""
    roles = registry.describe("methods", recipe.method.name)
    models = {role: _named("models", named.name) for role, named in recipe.models.items()}
    required = [r for r in roles.roles if r not in roles.optional_roles]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"perdure recipe for {recipe.method.name}",
        **_object(
            {
                "base": {"type": "string", "description": "Another recipe that this one changes."},
                "stream": _named("streams", recipe.stream.name),
                "models": _object(models, required),
                "method": _named("methods", recipe.method.name),
                "evaluate": _section(Evaluation),
                "merge": _section(Merge),
                "run": _section(Run),
                "expect": {"type": "array", "items": _section(Expect)},
            },
            [],
        ),
    }


def _named(place: str, name: str) -> dict[str, Any]:
    """Settings of one thing; a field that names another offers all names of that place."""
    at = cast(registry.Place, place)
    cls, docs = registry.settings(at, name), registry.field_docs(at, name)
    properties = {"name": {"enum": registry.names(at), "description": registry.describe(at, name).summary}}
    return _object(properties | _properties(cls, docs), ["name"])


def _section(cls: type) -> dict[str, Any]:
    required = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    return _object(_properties(cls, docs_of(cls)), required)


def _properties(cls: type, docs: dict[str, str]) -> dict[str, Any]:
    properties = {}
    for name, hint in config.field_types(cls).items():
        place = config.named_place(hint)
        schema = _names_of(place, hint) if place else _typed(hint)
        properties[name] = {**schema, **({"description": docs[name]} if docs.get(name) else {})}
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            properties[field.name]["default"] = config.plain(field.default)
    return properties


class _Lenient(GenerateJsonSchema):
    """What JSON Schema cannot say is left open: `perdure check` says it."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}


def _typed(hint: Any) -> dict[str, Any]:
    return TypeAdapter(hint).json_schema(schema_generator=_Lenient)


def _names_of(place: str, hint: Any) -> dict[str, Any]:
    names = registry.names(cast(registry.Place, place))
    one = {
        "anyOf": [
            {"enum": names},
            {"type": "object", "properties": {"name": {"enum": names}}, "required": ["name"]},
        ]
    }
    written = str(hint)
    if "tuple" in written or "list" in written:
        return {"type": "array", "items": one}
    return {"type": "object", "additionalProperties": one} if "dict" in written else one


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
