"""The whole of a recipe: every setting with its default and origin, what differs between two, and their text.

Knows sections and where settings are documented. Does not know files, nor what any setting means. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

from perdure.recipe.sections import Recipe
from perdure.recipe.text import dump
from perdure.settings import config, registry
from perdure.settings.config import Named
from perdure.settings.inert import BESIDE_PUBLISHED, moves_no_number
from perdure.settings.source import docs_of


class Setting(NamedTuple):
    """One line of `perdure show`."""

    value: Any
    origin: str
    """`default`, `file:line` or `command line`."""
    doc: str


def resolved(recipe: Recipe) -> dict[str, Setting]:
    """Every setting by its dotted name, defaults included, with its origin and its documentation."""
    table: dict[str, Setting] = {}

    def add(name: str, value: Any, doc: str, *, within: str = "") -> None:
        origin = recipe.origins.get(name) or recipe.origins.get(within) or "default"
        table[name] = Setting(config.plain(value), origin, doc)

    def add_named(prefix: str, named: Named) -> None:
        place = cast(registry.Place, named.place)
        add(f"{prefix}.name", named.name, registry.describe(place, named.name).summary, within=prefix)
        cls, docs = registry.settings(place, named.name), registry.field_docs(place, named.name)
        instance = config.parse(cls, named.settings, where=prefix)
        for key in config.field_types(cls):
            value = getattr(instance, key)
            if isinstance(value, Named):
                add_named(f"{prefix}.{key}", value)
            else:
                add(f"{prefix}.{key}", value, docs.get(key, ""))

    add_named("stream", recipe.stream)
    for role, named in recipe.models.items():
        add_named(f"models.{role}", named)
    add_named("method", recipe.method)
    for section in ("evaluate", *(["merge"] if recipe.merge.how != "none" else []), "run"):
        part = getattr(recipe, section)
        docs = docs_of(type(part))
        for key in config.field_types(type(part)):
            add(f"{section}.{key}", getattr(part, key), docs[key])
    if recipe.expect:
        add("expect", recipe.expect, "Published numbers, printed beside ours.")
    return table


def differences(old: Recipe, new: Recipe) -> list[tuple[str, Any, Any]]:
    """Settings that move numbers and differ: dotted name, old value, new value (None where absent)."""
    before, after = flat(resolved(old)), flat(resolved(new))
    names = [n for n in dict.fromkeys([*before, *after]) if n.partition(".")[0] != "expect"]
    pairs = [(name, before.get(name), after.get(name)) for name in names if not moves_no_number(name, after)]
    return [(name, was, now) for name, was, now in pairs if _placeless(was) != _placeless(now)]


def expecting(recipe: Recipe, stated: Recipe) -> Recipe:
    """A recipe whose published numbers know in what it differs from the one that states them."""
    was = {name: value for name, value, _ in differences(stated, recipe) if name not in BESIDE_PUBLISHED}
    now = flat(resolved(recipe))
    items = []
    for item in recipe.expect:
        before = was | item.stated_with
        before = {name: value for name, value in before.items() if _placeless(value) != _placeless(now.get(name))}
        items.append(replace(item, stated_with=before))
    return replace(recipe, expect=tuple(items))


def flat(table: Mapping[str, Setting]) -> dict[str, Any]:
    """Values by dotted name, those within groups of settings too."""
    found: dict[str, Any] = {}
    for name, setting in table.items():
        inner = setting.value if isinstance(setting.value, Mapping) else None
        found |= {name: setting.value} if inner is None else {f"{name}.{key}": value for key, value in inner.items()}
    return found


def _placeless(value: Any) -> Any:
    """A value in which data have no place: in lists of data sets it stands among the settings of each."""
    if isinstance(value, list):
        return [_placeless(one) for one in value]
    return {key: one for key, one in value.items() if key != "root"} if isinstance(value, Mapping) else value


def to_mapping(recipe: Recipe) -> dict[str, Any]:
    """The whole recipe as YAML's mappings, defaults included."""
    tree: dict[str, Any] = {}
    for name, setting in resolved(recipe).items():
        *path, last = name.split(".")
        part = tree
        for key in path:
            part = part.setdefault(key, {})
        part[last] = setting.value
    return tree


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe as a file that `load` reads back as an equal one."""
    return dump(to_mapping(recipe))
