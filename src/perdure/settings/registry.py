"""Names of methods, models, data sets and streams: one file, one name, or the path of a file.

Knows where the file of a name lies, and what of it is read from the source without running it
(`perdure.settings.source`): settings, roles, documentation. Does not know what a recipe is, nor any concrete
method, model, data set or stream.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import sys
from dataclasses import dataclass, replace
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from perdure.errors import RecipeError
from perdure.settings.source import Source, bound, docstring, locate, parsed
from perdure.settings.suggestions import nearest

Place = Literal["methods", "models", "data", "streams"]
PLACES: tuple[Place, ...] = ("methods", "models", "data", "streams")
SINGULAR = {"methods": "method", "models": "model", "data": "data set", "streams": "stream"}
MAKERS = {"models": "load", "data": "read", "streams": "build"}
"""What makes a thing of its settings: a function of its module. A method is made by its class."""
_HERE = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Description:
    """What `perdure list` shows of a name."""

    name: str
    summary: str
    """First line of the module's docstring."""
    needs: str = ""
    """What follows `Needs:` in the docstring."""
    answers: tuple[str, ...] = ()
    """Kinds that a method answers, sorted."""
    needs_task_name: tuple[str, ...] = ()
    """Kinds for which it must be told the task, as far as its class says; its settings may add some."""
    roles: tuple[str, ...] = ()
    """Pretrained models that a method takes, by name, in order."""
    optional_roles: tuple[str, ...] = ()
    """Those of `roles` that have a default."""
    one_role_of: tuple[str, ...] = ()
    """Optional roles of which exactly one is given."""
    head_grows: tuple[str, ...] = ()
    """Roles whose network a method gives more outputs where a later task of a run in use brings more classes."""
    not_updatable: str = ""
    """Why what a method has learned cannot be updated with a later task; empty: it can."""
    not_merged: str = ""
    """Why its weights are not merged with earlier ones (`merge`); empty: it says so itself, by `merged`."""
    learned_classes_only: str = ""
    """Why it answers only for classes that it has learned; empty: also for others, by name, if it has CLIP's texts."""
    new_labels_only: str = ""
    """Why its tasks may not bring examples of earlier tasks' classes; empty: they may."""
    module: str = ""


RECIPES = _HERE / "recipes"
_FILES = "perdure_file_"
"""Begins the module names of files that recipes name by path."""


@cache
def recipes() -> tuple[str, ...]:
    """Names of perdure's own recipes, ``method/recipe``: files below `RECIPES`, sorted."""
    return tuple(sorted(f"{f.parent.name}/{f.stem}" for f in RECIPES.glob("*/*.yaml")))


def names(place: Place) -> list[str]:
    """All names of a place, sorted: the files of perdure and the entry points of other packages."""
    return sorted({*_own(place), *_foreign(place)})


def known(place: Place, name: str) -> bool:
    """Whether something of the place is called so, or is a file of the user's own."""
    return Path(name).is_file() if is_file(name) else name in names(place)


def is_file(name: str) -> bool:
    """Whether a name is a path: ``./mine.py`` stands for the one thing of that place in the file."""
    return name.endswith(".py")


def label(name: str) -> str:
    """What a reader sees of a name: of a path the file's name alone."""
    return Path(name).stem if is_file(name) else name


def find(place: Place, name: str) -> ModuleSpec:
    """Where a name lies, without importing it. A name of perdure wins over another package's.

    Raises:
        RecipeError: nothing is called so; the nearest name is suggested.
    """
    if is_file(name):
        return _file(name)
    if file := _own(place).get(name):
        search = [str(file.parent)] if file.name == "__init__.py" else None
        module = f"perdure.{place}.{name}"
        spec = spec_from_file_location(module, file, submodule_search_locations=search)
        assert spec is not None
        return spec
    if spec := elsewhere(place, name):
        return spec
    near = nearest(name, names(place))
    hint = f"Did you mean `{near}`?" if near else f"See: perdure list {place}"
    raise RecipeError(f"no {SINGULAR[place]} is called `{name}`", todo=hint)


def describe(place: Place, name: str) -> Description:
    """Summary, needs, and for a method its kinds and roles, read from the source."""
    head = summarize(place, name)
    if place != "methods":
        return head
    method = method_class(name)[1]
    roles, optional = _roles(method)
    named = {key: _kinds(method, key) for key in ("answers", "needs_task_name", "one_role_of", "head_grows")}
    said = {
        key: " ".join(_kinds(method, key))
        for key in ("not_updatable", "new_labels_only", "learned_classes_only", "not_merged")
    }
    return replace(head, **named, **said, roles=roles, optional_roles=optional)


def summarize(place: Place, name: str) -> Description:
    """Summary and needs alone: the file is not parsed, for `perdure list` reads dozens of them."""
    spec = find(place, name)
    return replace(_head(spec.name, str(spec.origin)), name=name)


@cache
def _head(module: str, file: str) -> Description:
    """What a file's docstring says; a file of one's own that is edited is another module."""
    doc = docstring(Path(file))
    needs = re.search(r"^\s*Needs:\s*(.+?)\s*$", doc, re.MULTILINE)
    summary = doc.strip().split("\n", 1)[0].strip()
    return Description(name="", summary=summary, needs=needs.group(1) if needs else "", module=module)


def settings(place: Place, name: str) -> type:
    """The `Config` class of a name, made from its source alone: neither the module nor torch is imported.

    Raises:
        RecipeError: the name is unknown, or `Config` needs more than the standard library, pydantic and
            other settings.
    """
    return source(place, name).value("Config")


def field_docs(place: Place, name: str) -> dict[str, str]:
    """The docstring under each field of `Config`."""
    return source(place, name).field_docs("Config")


def load(place: Place, name: str) -> Any:
    """Imports the module of a name. For methods: the class that the file is named after."""
    spec = find(place, name)
    module = imported(spec)
    if place != "methods":
        return module
    wanted = _plain(_method_name(spec, name))
    for key, value in vars(module).items():
        if isinstance(value, type) and _plain(key) == wanted:
            return value
    raise _no_class(spec, name)


def _file(name: str) -> ModuleSpec:
    file = Path(name).expanduser().absolute()
    if not file.is_file():
        raise RecipeError("there is no such file", where=name, expected="a Python file of your own, or a name")
    if not file.stem.isidentifier():
        raise RecipeError("this name cannot be a module's", where=name, expected="letters, digits and _")
    version = f"{file.parent} {file.stat().st_mtime_ns}"  # edited in mid-session, it is another module
    digest = hashlib.blake2b(version.encode(), digest_size=4).hexdigest()
    spec = spec_from_file_location(f"{_FILES}{digest}.{file.stem}", file)
    assert spec is not None
    return spec


def elsewhere(group: str, name: str) -> ModuleSpec | None:
    """Where a name lies outside perdure: in a file, or by an entry point of ``perdure.<group>``; not imported."""
    if is_file(name):
        return _file(name)
    module = _foreign(group).get(name)
    return locate(module) if module else None


def imported(spec: ModuleSpec) -> ModuleType:
    """The module; files beside a file of the user's own can be imported by it, as by a script."""
    if not spec.name.startswith(_FILES):
        return importlib.import_module(spec.name)
    if spec.name in sys.modules:
        return sys.modules[spec.name]
    assert spec.loader is not None
    beside = str(Path(str(spec.origin)).parent)
    if beside not in sys.path:
        sys.path.append(beside)
    module = sys.modules[spec.name] = module_from_spec(spec)
    done = False
    try:
        spec.loader.exec_module(module)
        done = True
    finally:
        if not done:
            del sys.modules[spec.name]
    return module


@cache
def _own(place: Place) -> dict[str, Path]:
    """Files of a place that hold (or import) settings; the others serve them."""
    folder = _HERE / place
    files: dict[str, Path] = {}
    for file in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
        name = file.parent.name if file.name == "__init__.py" and file.parent != folder else file.stem
        if not name.startswith("_") and _CONFIG.search(file.read_text(encoding="utf-8")):
            files[name] = file
    return files


_CONFIG = re.compile(r"^class Config\b|^from \S+ import .*\bConfig\b", re.MULTILINE)


def _foreign(group: str) -> dict[str, str]:
    """Entry points of other packages: name -> module."""
    return _entry_points(f"perdure.{group}", tuple(sys.path))


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> dict[str, str]:
    return {point.name: point.module for point in entry_points(group=group)}


def source(place: Place, name: str) -> Source:
    """The file of a name, parsed."""
    return parsed(find(place, name))


def method_class(name: str) -> tuple[Source, ast.ClassDef]:
    """The class of a method, and the file that defines it."""
    own = source("methods", name)
    wanted = _plain(own.module.rpartition(".")[2])
    for key in own.nodes:
        if _plain(key) == wanted or _plain(key) == _plain(name):
            home, node = own.definition(key)
            if isinstance(node, ast.ClassDef):
                return home, node
    raise _no_class(find("methods", name), name)


def _method_name(spec: ModuleSpec, name: str) -> str:
    """A method's class is named after its file; an entry point may call the method otherwise."""
    return name if spec.name.startswith("perdure.") else spec.name.rpartition(".")[2]


def _no_class(spec: ModuleSpec, name: str) -> RecipeError:
    camel = "".join(part.capitalize() for part in _method_name(spec, name).split("_"))
    return RecipeError(f"the file of method `{name}` has no class {camel}", where=str(spec.origin))


def _kinds(method: ast.ClassDef, name: str) -> tuple[str, ...]:
    """The strings of a class attribute, sorted; none where there is no such attribute."""
    for node in method.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in bound(node) and node.value:
            if isinstance(node.value, ast.Name):  # the same as another attribute
                return _kinds(method, node.value.id)
            texts = (n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant))
            return tuple(sorted(t for t in texts if isinstance(t, str)))
    return ()


def _roles(method: ast.ClassDef) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Keyword-only parameters of `__init__`, and those among them with a default."""
    for node in method.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            roles = [a.arg for a in node.args.kwonlyargs]
            return tuple(roles), tuple(r for r, d in zip(roles, node.args.kw_defaults) if d is not None)
    return (), ()


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
