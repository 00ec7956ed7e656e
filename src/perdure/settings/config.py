"""Settings: a mapping becomes a frozen dataclass, or a list of all its faults in plain words.

Knows types, constraints and nearest names. Does not know files or line numbers (that is `perdure.recipe`),
nor what any setting means. Imports no torch.

A settings class is a frozen keyword-only dataclass. Constraints are pydantic's: ``Annotated[float, Field(gt=0)]``.
A field ``Annotated[Named, "data"]`` names something of another place, with that thing's own settings.
What concerns several fields is said by a method ``faults(self)`` that yields (field, message).
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePath
from typing import Annotated, Any, TypeVar

from annotated_types import Interval, Le, Lt
from pydantic import Field

from perdure.errors import RecipeError
from perdure.files.folders import path_fault
from perdure.settings import registry
from perdure.settings.faults import Fault, Keys, display, expectation, message, nearest_choice
from perdure.settings.suggestions import nearest

T = TypeVar("T")
Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]
"""A seed: what generators of random numbers take."""
Template = Annotated[str, Field(pattern=r"^[^{}]*\{\}[^{}]*$")]
"""A text with one `{}`, where a name goes."""
MOST = 10**9
"""The largest whole number of a setting that states no bound of its own: a count of things that a run goes through."""
LARGEST = 3.4e38
"""Of float32, in which settings meet tensors."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """Something of a place by its name, with the settings that are stated (not the defaults)."""

    place: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    """As in YAML: text, numbers, lists and mappings."""

    @classmethod
    def of(cls, place: str, value: Any) -> Named:
        """From YAML's two forms, ``cifar100`` and ``{name: cifar100, root: /data}``."""
        if isinstance(value, Named):
            return dataclasses.replace(value, place=place)
        if isinstance(value, str):
            return cls(place=place, name=value)
        return cls(place=place, name=value["name"], settings={k: v for k, v in value.items() if k != "name"})

    def plain(self) -> dict[str, Any]:
        """The YAML form: name and stated settings."""
        return {"name": self.name, **plain(self.settings)}

    def build(self, **roles: Any) -> Any:
        """The thing itself: a data set, a loaded model, a stream, or a method that is given its models by role.

        Raises:
            RecipeError: nothing is called so, or a setting is at fault.
        """
        place = typing.cast(registry.Place, self.place)
        thing = registry.load(place, self.name)
        config = parse(thing.Config, self.settings, where=f"{registry.SINGULAR[place]} {self.name}")
        make = thing if place == "methods" else getattr(thing, registry.MAKERS[place])
        return make(config, **roles)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema  # 40 ms that `perdure --help` has no use for

        # The place is in the annotation; `parse` fills it in and checks the settings one by one.
        return core_schema.no_info_plain_validator_function(
            lambda value: cls.of("", value),
            json_schema_input_schema=core_schema.any_schema(),
        )


def parse(cls: type[T], mapping: Mapping[str, Any], *, where: str) -> T:
    """An instance of a settings class.

    Args:
        cls: a frozen keyword-only dataclass.
        mapping: settings by name, as YAML gives them.
        where: said in front of each fault.

    Raises:
        RecipeError: one line a fault, all at once.
    """
    instance, faults = check(cls, mapping)
    if faults or instance is None:
        raise RecipeError("\n".join(f"{where}: {message(fault)}" for fault in faults))
    return instance


def check(cls: type[T], mapping: Any, path: Keys = ()) -> tuple[T | None, list[Fault]]:
    """The instance (None if there are faults), and all faults.

    Args:
        cls: a frozen keyword-only dataclass.
        mapping: settings by name, as YAML gives them.
        path: put in front of each fault's path.
    """
    if not isinstance(mapping, Mapping):
        return None, [Fault(path=path, what=f"expected settings by name, found {display(mapping)}")]
    hints = _hints(cls)
    known = {str(k): v for k, v in mapping.items() if str(k) in hints}
    faults = [_unknown(key, list(hints), path) for key in mapping if str(key) not in hints]
    for key, value in list(known.items()):
        inside = [*_unholdable(value, (*path, key)), *_inside(hints[key], value, (*path, key))]
        faults += inside
        if inside:
            del known[key]
    missing = [n for n in _required(cls) if n not in mapping]
    faults += [Fault(path=path, what=f"`{_dotted(path, n)}` is missing", at="key") for n in missing]
    instance, type_faults, good = _typed(cls, known, path)
    faults += type_faults
    if instance is not None and hasattr(cls, "faults"):
        faults += _cross(instance, {k for k in mapping if k not in good}, path)
    return (None if faults else instance), faults


def plain(value: Any) -> Any:
    """Settings as JSON and YAML can hold them: dataclasses become dicts, tuples lists, paths text."""
    if isinstance(value, Named):
        return value.plain()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(v) for v in value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    if isinstance(value, PurePath | datetime.date | datetime.time):
        return str(value)
    return value


def named_place(hint: Any) -> str | None:
    """The place of a field ``Annotated[Named, place]`` (also optional, or in a list or mapping), else None."""
    if typing.get_origin(hint) is typing.Annotated and typing.get_args(hint)[0] is Named:
        return next((m for m in typing.get_args(hint)[1:] if isinstance(m, str)), None)
    return next((p for a in typing.get_args(hint) if (p := named_place(a))), None)


def field_types(cls: type) -> dict[str, Any]:
    """The annotations of a settings class, evaluated."""
    return dict(_hints(cls))


def _dotted(path: Keys, key: Any) -> str:
    return ".".join(str(p) for p in (*path, key))


def _unknown(key: Any, options: list[str], path: Keys) -> Fault:
    near = nearest(str(key), options)
    hint = f"did you mean `{near}`?" if near else f"known: {', '.join(options)}" if options else ""
    return Fault(path=(*path, key), what=f"unknown setting `{_dotted(path, key)}`", hint=hint, at="key")


@cache
def _hints(cls: type) -> dict[str, Any]:
    annotations = typing.get_type_hints(cls, include_extras=True)
    return {f.name: annotations[f.name] for f in dataclasses.fields(cls) if f.init}


def _required(cls: type) -> list[str]:
    none = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.default is none and f.default_factory is none]


def _unholdable(value: Any, path: Keys) -> Iterator[Fault]:
    """What no setting means and bounds of one side let pass: infinity, NaN, numbers beyond their type, NUL in text."""
    if isinstance(value, float) and not math.isfinite(value):
        yield Fault(path=path, what=f"expected a finite number, found {value}")
    elif isinstance(value, float) and abs(value) > LARGEST:
        yield Fault(path=path, what=f"expected a number of at most {LARGEST:g} (float32), found {value:g}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield Fault(path=path, what=f"expected a whole number of at most 64 bits, found {display(value)}")
    elif isinstance(value, str) and "\0" in value:
        yield Fault(path=path, what="expected text without the character NUL")
    elif isinstance(value, Mapping):
        for key, sub in value.items():
            yield from _unholdable(sub, (*path, key))
    elif isinstance(value, list | tuple):
        for i, sub in enumerate(value):
            yield from _unholdable(sub, (*path, i))


def _inside(hint: Any, value: Any, path: Keys) -> Iterator[Fault]:
    """Faults of what pydantic lets pass: unknown keys of nested settings, Named of another place, counts without end,
    paths that no file system holds."""
    if isinstance(value, Named):
        value = value.plain()
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        if args[0] is Named:
            yield from check_named(str(args[1]), value, path)
        elif args[0] is not int or not any(map(_is_upper_bound, args[1:])):
            yield from _inside(args[0], value, path)
    elif origin in (typing.Union, types.UnionType):
        if value is not None or type(None) not in args:
            for arg in args:
                yield from _inside(arg, value, path)
    elif dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        options = list(_hints(typing.cast(type, hint)))
        yield from (_unknown(k, options, path) for k in value if str(k) not in options)
        for key, sub in _hints(typing.cast(type, hint)).items():
            if key in value:
                yield from _inside(sub, value[key], (*path, key))
    elif args and isinstance(value, Mapping):
        for key, sub in value.items():
            yield from _inside(args[-1], sub, (*path, key))
    elif args and isinstance(value, list | tuple):
        for i, sub in enumerate(value):
            yield from _inside(args[0], sub, (*path, i))
    elif hint is int and isinstance(value, int) and abs(value) > MOST:
        yield Fault(path=path, what=f"expected a number of at most {MOST}, found {display(value)}")
    elif hint is Path and isinstance(value, str) and (fault := path_fault(value)):
        yield Fault(path=path, what=fault)


def _is_upper_bound(constraint: Any) -> bool:
    """Whether pydantic's `Field` or one of annotated_types bounds a number from above."""
    if isinstance(constraint, Interval):
        return constraint.le is not None or constraint.lt is not None
    return isinstance(constraint, Le | Lt) or any(isinstance(c, Le | Lt) for c in getattr(constraint, "metadata", ()))


def check_named(place: str, value: Any, path: Keys) -> list[Fault]:
    """Faults of something named: is there such a thing, and are its settings right?"""
    name = value.get("name") if isinstance(value, Mapping) else value
    what = registry.SINGULAR[place]
    if not isinstance(name, str):
        found = "no `name`" if isinstance(value, Mapping) and name is None else display(name)
        hint = f"see: perdure list {place}"
        return [Fault(path=path, what=f"expected the name of a {what}, found {found}", hint=hint)]
    at = (*path, "name") if isinstance(value, Mapping) else path
    if not registry.known(typing.cast(registry.Place, place), name):
        return [_no_such(place, name, at)]
    try:
        cls = registry.settings(typing.cast(registry.Place, place), name)
    except RecipeError as error:
        return [Fault(path=at, what=f"the settings of `{name}` cannot be read: {error}")]
    stated = {k: v for k, v in value.items() if k != "name"} if isinstance(value, Mapping) else {}
    return check(cls, stated, path)[1]


def _no_such(place: str, name: str, path: Keys) -> Fault:
    if registry.is_file(name):
        return Fault(path=path, what=f"there is no file `{name}`", hint="a path is taken from where the recipe lies")
    near = nearest(name, registry.names(typing.cast(registry.Place, place)))
    hint = f"did you mean `{near}`?" if near else f"see: perdure list {place}; or the path of a file: ./{name}.py"
    return Fault(path=path, what=f"no {registry.SINGULAR[place]} is called `{name}`", hint=hint)


@cache
def _adapter(cls: type) -> Any:
    """Pydantic's reader of a settings class; making one costs more than reading a recipe."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _typed(cls: type[T], known: dict[str, Any], path: Keys) -> tuple[T | None, list[Fault], set[str]]:
    """An instance of what is well typed, the faults of the rest, and the names of well-typed fields.

    With faults the instance has defaults in their place (None if a required field is among them): only
    what `faults` says of other fields may be asked of it.
    """
    from pydantic import ValidationError

    adapter = _adapter(cls)
    faults: dict[Keys, tuple[list[str], Any]] = {}
    good = dict(known)
    for _ in range(len(known) + 1):
        try:
            # JSON mode is strict in the way that YAML needs: "3" is no number, but a list makes a tuple.
            instance = adapter.validate_json(_json(good), strict=True)
        except ValidationError as error:
            wrong = [e for e in error.errors(include_url=False) if e["loc"] and e["loc"][0] in good]
            for each in wrong:
                at, found = _located(each["loc"], good)
                faults.setdefault(at, ([], found))[0].append(expectation(each))
            good = {k: v for k, v in good.items() if k not in {e["loc"][0] for e in wrong}}
            if not wrong:  # a required field is missing, or text is no Unicode
                others = [expectation(e) for e in error.errors(include_url=False) if not e["loc"]]
                faults |= {(): (others, known)} if others else {}
                instance = None
                break
            continue
        break
    listed = []
    for at, (words, found) in faults.items():
        expected = " or ".join(dict.fromkeys(words))
        what = expected if expected.startswith("is ") else f"expected {expected}, found {display(found)}"
        listed.append(Fault(path=(*path, *at), what=what, hint=nearest_choice(words, found)))
    if instance is not None:
        instance = _placed(instance)
    return instance, listed, set(good)


def _json(value: Mapping[str, Any]) -> str:
    def other(item: Any) -> Any:
        return item.plain() if isinstance(item, Named) else plain(item)

    return json.dumps(value, default=other)


def _located(loc: tuple[Any, ...], value: Any) -> tuple[Keys, Any]:
    """The part of pydantic's location that exists in the value (the rest names branches of a union)."""
    path: Keys = ()
    for part in loc:
        in_list = isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)
        if in_list or (isinstance(value, Mapping) and part in value):
            value, path = value[part], (*path, part)
    return path, value


def _placed(instance: T) -> T:
    """The same settings with the place filled into each Named."""

    def fill(value: Any, place: str) -> Any:
        if isinstance(value, Named):
            return dataclasses.replace(value, place=place)
        if isinstance(value, dict):
            return {k: fill(v, place) for k, v in value.items()}
        return type(value)(fill(v, place) for v in value) if isinstance(value, list | tuple) else value

    hints = _hints(type(instance))
    changed = {n: fill(getattr(instance, n), p) for n, h in hints.items() if (p := named_place(h))}
    return dataclasses.replace(typing.cast(Any, instance), **changed) if changed else instance


def _cross(instance: Any, unsure: set[str], path: Keys) -> list[Fault]:
    """What the settings say of several fields, as far as it does not depend on a faulty one."""
    found: list[Fault] = []
    try:
        for name, message in type(instance).faults(_Known(instance, unsure)):
            found.append(Fault(path=(*path, name), what=str(message)))
    except _Unsure:
        pass
    return found


class _Unsure(Exception):
    """A faulty field was asked for."""


class _Known:
    """Settings some of whose fields are faulty: reading one of those ends the question."""

    def __init__(self, instance: Any, unsure: set[str]) -> None:
        self._instance, self._unsure = instance, unsure

    def __getattr__(self, name: str) -> Any:
        if name in self._unsure:
            raise _Unsure
        member = getattr(type(self._instance), name, None)
        if callable(member) or isinstance(member, property):
            return member.__get__(self)  # a method or property asks through us
        return getattr(self._instance, name)
