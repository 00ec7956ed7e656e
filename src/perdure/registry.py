"""Names of methods, models, data sets and streams: one file, one name.

Knows where the file of a name lies, and reads its settings, roles and documentation from the source
without running it, so that recipes are checked without torch. Does not know what a recipe is, nor any
concrete method, model, data set or stream.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import entry_points
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from tokenize import NAME, OP, STRING, generate_tokens
from typing import Any, Literal

from perdure.errors import RecipeError
from perdure.nearest import nearest

Place = Literal["methods", "models", "data", "streams"]
PLACES: tuple[Place, ...] = ("methods", "models", "data", "streams")
SINGULAR = {"methods": "method", "models": "model", "data": "data set", "streams": "stream"}
_MAKERS = {"models": "load", "data": "read", "streams": "build"}
_HERE = Path(__file__).parent


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
    roles: tuple[str, ...] = ()
    """Pretrained models that a method takes, by name, in order."""
    optional_roles: tuple[str, ...] = ()
    """Those of `roles` that have a default."""
    module: str = ""


RECIPES = _HERE / "recipes"


def recipes() -> list[str]:
    """Names of perdure's own recipes, ``method/recipe``: files below `RECIPES`."""
    return sorted(str(f.relative_to(RECIPES).with_suffix("").as_posix()) for f in RECIPES.glob("*/*.yaml"))


def names(place: Place) -> list[str]:
    """All names of a place, sorted: the files of perdure and the entry points of other packages."""
    return sorted({*_own(place), *_foreign(place)})


def find(place: Place, name: str) -> ModuleSpec:
    """Where a name lies, without importing it. A name of perdure wins over another package's.

    Raises:
        RecipeError: nothing is called so; the nearest name is suggested.
    """
    if file := _own(place).get(name):
        search = [str(file.parent)] if file.name == "__init__.py" else None
        module = f"perdure.{place}.{name}"
        spec = spec_from_file_location(module, file, submodule_search_locations=search)
        assert spec is not None
        return spec
    if module := _foreign(place).get(name):
        return _locate(module)
    near = nearest(name, names(place))
    hint = f"Did you mean `{near}`?" if near else f"See: perdure list {place}"
    raise RecipeError(f"no {SINGULAR[place]} is called `{name}`", todo=hint)


@cache
def describe(place: Place, name: str) -> Description:
    """Summary, needs, and for a method its kinds and roles, read from the source."""
    spec = find(place, name)
    doc = _docstring(Path(str(spec.origin)))
    needs = re.search(r"^\s*Needs:\s*(.+?)\s*$", doc, re.MULTILINE)
    answers: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    if place == "methods":
        method = _method_class(_parsed(spec), name)
        answers = _answers(method)
        roles, optional = _roles(method)
    return Description(
        name=name,
        summary=doc.strip().split("\n", 1)[0].strip(),
        needs=needs.group(1) if needs else "",
        answers=answers,
        roles=roles,
        optional_roles=optional,
        module=spec.name,
    )


@cache
def settings(place: Place, name: str) -> type:
    """The `Config` class of a name, made from its source alone: neither the module nor torch is imported.

    Raises:
        RecipeError: the name is unknown, or `Config` needs more than the standard library, pydantic and
            other settings.
    """
    return _source(place, name).value("Config")


@cache
def field_docs(place: Place, name: str) -> dict[str, str]:
    """The docstring under each field of `Config`."""
    _, node = _source(place, name).definition("Config")
    assert isinstance(node, ast.ClassDef)
    return class_docs(node)


def class_docs(node: ast.ClassDef) -> dict[str, str]:
    """The docstring under each annotated field of a class, whitespace folded."""
    docs: dict[str, str] = {}
    for field, below in zip(node.body, [*node.body[1:], None]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            text = ""
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                text = " ".join(str(below.value.value).split())
            docs[field.target.id] = text
    return docs


def load(place: Place, name: str) -> Any:
    """Imports the module of a name. For methods: the class that the file is named after."""
    spec = find(place, name)
    module = importlib.import_module(spec.name)
    if place != "methods":
        return module
    wanted = _plain(_method_name(spec, name))
    for key, value in vars(module).items():
        if isinstance(value, type) and _plain(key) == wanted:
            return value
    raise _no_class(spec, name)


def build(named: Any, **kwargs: Any) -> Any:
    """What a `perdure.config.Named` stands for: a data set, a loaded model, a stream, a method.

    Args:
        named: place, name and settings.
        **kwargs: passed on to the maker (the roles of a method).
    """
    from perdure.config import parse  # config imports this module

    thing = load(named.place, named.name)
    where = f"{SINGULAR[named.place]} {named.name}"
    config = parse(thing.Config, named.settings, where=where)
    maker = thing if named.place == "methods" else getattr(thing, _MAKERS[named.place])
    return maker(config, **kwargs)


def _docstring(file: Path) -> str:
    """A module's docstring, without parsing the module: `perdure list` reads dozens of them."""
    with file.open(encoding="utf-8") as opened:
        for token in generate_tokens(opened.readline):
            if token.type == STRING:
                return str(ast.literal_eval(token.string))
            if token.type in (NAME, OP):
                break
    return ""


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


def _foreign(place: Place) -> dict[str, str]:
    """Entry points of other packages: name -> module."""
    return _entry_points(f"perdure.{place}", tuple(sys.path))


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> dict[str, str]:
    return {point.name: point.module for point in entry_points(group=group)}


def _locate(module: str) -> ModuleSpec:
    """The spec of a dotted module without importing its parents (`find_spec` would run them)."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    for depth in range(len(rest)):
        if spec is not None:
            dotted = ".".join([top, *rest[: depth + 1]])
            spec = PathFinder.find_spec(dotted, spec.submodule_search_locations)
    if spec is None:
        raise RecipeError(f"the module {module} is not installed", todo="Reinstall the package that names it.")
    return spec


class _Source:
    """A parsed file: its module-level definitions, and their values made from no more than they need."""

    def __init__(self, module: str, file: str) -> None:
        self.module, self.file = module, Path(file)
        self.is_package = self.file.name == "__init__.py"
        try:
            self.tree = ast.parse(self.file.read_text(encoding="utf-8"), filename=str(self.file))
        except SyntaxError as error:
            raise RecipeError(f"is not Python: {error.msg}", where=f"{self.file}:{error.lineno}") from error
        self._values: dict[str, Any] = {"__name__": self.module, "__builtins__": __builtins__}
        self._under_way: set[str] = set()

    @cached_property
    def nodes(self) -> dict[str, ast.stmt]:
        """Name -> the module-level statement that binds it (under `if TYPE_CHECKING` too)."""
        return {name: node for node in _statements(self.tree.body) for name in _bound(node)}

    def definition(self, name: str) -> tuple[_Source, ast.stmt]:
        """The statement that defines a name, here or in the file that it is imported from."""
        node = self.nodes.get(name)
        if node is None:
            raise RecipeError(f"`{name}` is missing", where=str(self.file), expected=f"a top-level `{name}`")
        if isinstance(node, ast.ImportFrom) and (module := self._ours(node)):
            original = next(a.name for a in node.names if (a.asname or a.name) == name)
            return _parsed(_locate(module)).definition(original)
        return self, node

    def value(self, name: str) -> Any:
        """The value of a module-level name, by running its statement and those that it needs."""
        if name not in self._values:
            node = self.nodes[name] if name in self.nodes else self.definition(name)[1]
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._values[name] = self._imported(node, name)
            else:
                self._under_way.add(name)
                for needed in _needed(node) - self._under_way:
                    if needed in self.nodes:
                        self.value(needed)
                # Compiled without the file's `from __future__ import annotations`: types, not strings.
                code = compile(ast.Module([node], type_ignores=[]), str(self.file), "exec", flags=0, dont_inherit=True)
                exec(code, self._values)
        return self._values[name]

    def _imported(self, node: ast.Import | ast.ImportFrom, name: str) -> Any:
        alias = next(a for a in node.names if name in (a.asname, a.name.split(".")[0], a.name))
        if isinstance(node, ast.ImportFrom):
            if module := self._ours(node):
                return _from_source(module, alias.name)
            module = node.module or ""
        else:
            module = alias.name
        if module.split(".")[0] not in _LIGHT and module not in _LIGHT:
            raise RecipeError(
                f"`Config` needs `{name}` of {module}",
                where=f"{self.file}:{node.lineno}",
                expected="settings that need only the standard library, pydantic and perdure.config",
                todo="Settings are read without importing such modules.",
            )
        if isinstance(node, ast.ImportFrom):
            return getattr(importlib.import_module(module), alias.name)
        imported = importlib.import_module(module)
        return imported if alias.asname else sys.modules[module.split(".")[0]]

    def _ours(self, node: ast.ImportFrom) -> str | None:
        """The module of a relative import or one from the same package; None if it may be imported."""
        module = node.module or ""
        if node.level:
            parts = self.module.split(".")
            parts = parts[: len(parts) - node.level + self.is_package]
            module = ".".join([*parts, module] if module else parts)
        if module in _LIGHT or module.split(".")[0] not in (self.module.split(".")[0], "perdure"):
            return None
        return module


_LIGHT = {
    *sys.stdlib_module_names,
    *("pydantic", "annotated_types", "typing_extensions"),
    *("perdure.types", "perdure.errors", "perdure.config"),
}
"""Modules that a `Config` may import for real: none of them imports torch."""


def _from_source(module: str, name: str) -> Any:
    """What ``from module import name`` gives, without importing: a value, or a module whose values are read late."""
    spec = _locate(module)
    if PathFinder.find_spec(f"{module}.{name}", spec.submodule_search_locations or []):
        return _Unimported(f"{module}.{name}")
    return _parsed(spec).value(name)


class _Unimported:
    """A module of ours whose attributes are read from its source."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return _from_source(self._module, name)


def _parsed(spec: ModuleSpec) -> _Source:
    return _read(spec.name, str(spec.origin))


@cache
def _read(module: str, file: str) -> _Source:
    return _Source(module, file)


def _source(place: Place, name: str) -> _Source:
    return _parsed(find(place, name))


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node.body)
        else:
            yield node


def _bound(node: ast.stmt) -> list[str]:
    """Names that a statement binds."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Import):
        return [a.asname or a.name.split(".")[0] for a in node.names]
    if isinstance(node, ast.ImportFrom) and node.module != "__future__":
        return [a.asname or a.name for a in node.names]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.Assign):
        return [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return []


def _needed(node: ast.stmt) -> set[str]:
    """Names that a statement reads."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _method_class(source: _Source, name: str) -> ast.ClassDef:
    wanted = _plain(source.module.rpartition(".")[2])
    for key in source.nodes:
        if _plain(key) == wanted or _plain(key) == _plain(name):
            node = source.definition(key)[1]
            if isinstance(node, ast.ClassDef):
                return node
    raise _no_class(find("methods", name), name)


def _method_name(spec: ModuleSpec, name: str) -> str:
    """A method's class is named after its file; an entry point may call the method otherwise."""
    return name if spec.name.startswith("perdure.") else spec.name.rpartition(".")[2]


def _no_class(spec: ModuleSpec, name: str) -> RecipeError:
    camel = "".join(part.capitalize() for part in _method_name(spec, name).split("_"))
    return RecipeError(f"the file of method `{name}` has no class {camel}", where=str(spec.origin))


def _answers(method: ast.ClassDef) -> tuple[str, ...]:
    for node in method.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and "answers" in _bound(node) and node.value:
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
