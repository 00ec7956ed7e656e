"""Python files whose values are read without importing them.

Knows a file's module-level statements, and makes the value of a name by running no more of them than it needs:
so settings are known without torch. Does not know places, names or what a setting is for.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from functools import cache, cached_property
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from tokenize import NAME, OP, STRING, generate_tokens
from typing import Any

from perdure.errors import RecipeError


def parsed(spec: ModuleSpec) -> Source:
    """The file of a module, parsed once."""
    return _read(spec.name, str(spec.origin))


class Source:
    """A parsed file: its module-level definitions, and their values.

    Raises:
        RecipeError: the file is not Python.
    """

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
        return {name: node for node in _statements(self.tree.body) for name in bound(node)}

    def definition(self, name: str) -> tuple[Source, ast.stmt]:
        """The statement that defines a name, here or in the file that it is imported from."""
        node = self.nodes.get(name)
        if node is None:
            raise RecipeError(f"`{name}` is missing", where=str(self.file), expected=f"a top-level `{name}`")
        if isinstance(node, ast.ImportFrom) and (module := self._ours(node)):
            original = next(a.name for a in node.names if (a.asname or a.name) == name)
            return parsed(locate(module)).definition(original)
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

    def field_docs(self, name: str) -> dict[str, str]:
        """The docstring under each field of a class, inherited ones included: those of its bases first."""
        home, node = self.definition(name)
        if not isinstance(node, ast.ClassDef):
            return {}
        docs: dict[str, str] = {}
        for base in reversed(node.bases):
            if isinstance(base, ast.Name) and base.id in home.nodes:
                docs |= home.field_docs(base.id)
            elif isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name):
                docs |= home._module_docs(base.value.id, base.attr)
        return docs | {field: text for field, text in class_docs(node).items() if text or field not in docs}

    def _module_docs(self, alias: str, name: str) -> dict[str, str]:
        """`field_docs` of a class in an imported module of ours."""
        module = self.module_of(alias)
        return {} if module is None else module.field_docs(name)

    def module_of(self, alias: str) -> Source | None:
        """The module of ours that a name stands for by ``from package import module``; None: it stands for none."""
        node = self.nodes.get(alias)
        if not isinstance(node, ast.ImportFrom) or (package := self._ours(node)) is None:
            return None
        original = next(a.name for a in node.names if (a.asname or a.name) == alias)
        return parsed(locate(f"{package}.{original}"))

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
                expected="settings that need only the standard library, pydantic and perdure.settings.config",
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


def docs_of(cls: type) -> dict[str, str]:
    """The docstring under each field of a class, inherited ones included."""
    return parsed(locate(cls.__module__)).field_docs(cls.__name__)


def docstring(file: Path) -> str:
    """A module's docstring, without parsing the module."""
    with file.open(encoding="utf-8") as opened:
        for token in generate_tokens(opened.readline):
            if token.type == STRING:
                return str(ast.literal_eval(token.string))
            if token.type in (NAME, OP):
                break
    return ""


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


def locate(module: str) -> ModuleSpec:
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


def bound(node: ast.stmt) -> list[str]:
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


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _statements(node.body)
        else:
            yield node


def _needed(node: ast.stmt) -> set[str]:
    """Names that a statement reads."""
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


_LIGHT = {
    *sys.stdlib_module_names,
    *("pydantic", "annotated_types", "typing_extensions"),
    *("perdure.types", "perdure.errors", "perdure.settings.config"),
}
"""Modules that a `Config` may import for real: none of them imports torch."""


def _from_source(module: str, name: str) -> Any:
    """What ``from module import name`` gives, without importing: a value, or a module whose values are read late."""
    spec = locate(module)
    if PathFinder.find_spec(f"{module}.{name}", spec.submodule_search_locations or []):
        return _Unimported(f"{module}.{name}")
    return parsed(spec).value(name)


class _Unimported:
    """A module of ours whose attributes are read from its source."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return _from_source(self._module, name)


@cache
def _read(module: str, file: str) -> Source:
    return Source(module, file)
