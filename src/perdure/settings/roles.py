"""Whether a model is what a method takes in a role: has it the public names of the class that the role is annotated
with?

Knows classes by their sources (`lacking`, before anything is imported) and by themselves (`lacking_now`). Does not know
any method or model. A model of somebody's own fits where it has the names, whatever it is called.
"""

from __future__ import annotations

import ast
import inspect
import typing
from typing import Any

from perdure.errors import RecipeError
from perdure.settings import registry
from perdure.settings.source import Source

Home = tuple[Source, ast.ClassDef]
"""A class and the file that defines it."""
_BARE = {"object", "Protocol", "Generic", "ABC"}
"""Bases that bring no names of their own."""
_MODULE = ("nn.Module", "torch.nn.Module", "Module")


def lacking(method: str, role: str, model: str) -> list[str]:
    """Names that a role's class has and a model's has not, as far as their sources tell; sorted."""
    had = _had(model)
    return [] if had is None else _short(method, role, had)


def fitting(method: str, role: str) -> list[str]:
    """The models that have them all, by name; one that no source describes is taken for a network with `forward`."""
    return [name for name in registry.names("models") if not _short(method, role, _had(name) or {"forward"})]


def _short(method: str, role: str, had: set[str]) -> list[str]:
    home, node = registry.method_class(method)
    asked = next((arg.annotation for arg in _keywords(node) if arg.arg == role), None)
    wanted = [_wanted(home, part) for part in _parts(asked)] if asked is not None else []
    if not wanted or any(names is None for names in wanted):
        return []
    return sorted(min(((names or set()) - had for names in wanted), key=len))


def lacking_now(method: type, role: str, model: Any) -> list[str]:
    """The same of a model that is loaded; none where the role's annotation names no class."""
    try:
        hint = typing.get_type_hints(method.__init__).get(role)  # type: ignore[misc]
    except (NameError, AttributeError, TypeError):  # imported for type checkers alone
        return []
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if inspect.isclass(kind) and kind is not type(None)]
    if not kinds or isinstance(model, tuple(kind for kind in kinds if not getattr(kind, "_is_protocol", False))):
        return []
    had = set(dir(model))
    return sorted(min((_public(kind) - had for kind in kinds), key=len))


def _public(kind: type) -> set[str]:
    """Public names that a class and its bases define, but for those of torch's and of Python's own."""
    own = [c for c in kind.__mro__ if c.__module__.split(".")[0] not in ("builtins", "typing", "abc", "torch")]
    names = {name for c in own for name in (*vars(c), *vars(c).get("__annotations__", {}))}
    return {name for name in names if not name.startswith("_")}


def _keywords(node: ast.ClassDef) -> list[ast.arg]:
    inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    return inits[0].args.kwonlyargs if inits else []


def _had(model: str) -> set[str] | None:
    """Names of the class of which a model's `load` says that it returns it."""
    try:
        home, node = registry.source("models", model).definition("load")
        parts = _parts(node.returns) if isinstance(node, ast.FunctionDef) and node.returns else []
        made = _class(home, parts[0]) if len(parts) == 1 else None
        return None if made is None else _names(made, own=True)
    except RecipeError:  # a file that cannot be read, of which settings have said so
        return None


def _parts(annotation: ast.expr) -> list[ast.expr]:
    """The classes of a union, without None."""
    if isinstance(annotation, ast.BinOp):
        return [*_parts(annotation.left), *_parts(annotation.right)]
    if isinstance(annotation, ast.Constant):
        text = annotation.value
        return _parts(ast.parse(text, mode="eval").body) if isinstance(text, str) else []
    return [annotation]


def _class(home: Source, expression: ast.expr) -> Home | None:
    """The definition of a class; None for one of another package."""
    if isinstance(expression, ast.Name) and expression.id in home.nodes:
        where, node = home.definition(expression.id)
    elif isinstance(expression, ast.Attribute) and isinstance(expression.value, ast.Name):
        module = home.module_of(expression.value.id)
        if module is None or expression.attr not in module.nodes:
            return None
        where, node = module.definition(expression.attr)
    else:
        return None
    return (where, node) if isinstance(node, ast.ClassDef) else None


def _wanted(home: Source, expression: ast.expr) -> set[str] | None:
    """Names that a role asks for: of any network that it is one, that it can be called."""
    if ast.unparse(expression) in _MODULE:
        return {"forward"}
    found = _class(home, expression)
    return None if found is None else _names(found, own=False)


def _names(found: Home, *, own: bool) -> set[str] | None:
    """Public names of a class and its bases, with `own` those that its methods set too; None where a base is of another
    package."""
    home, node = found
    names: set[str] = set()
    for base in node.bases:
        plain = base.value if isinstance(base, ast.Subscript) else base
        if ast.unparse(plain).rpartition(".")[2] in _BARE or ast.unparse(plain) in _MODULE:
            continue
        below = _class(home, plain)
        more = None if below is None else _names(below, own=own)
        if more is None:
            return None
        names |= more
    for part in ast.walk(node) if own else node.body:
        if isinstance(part, ast.FunctionDef):
            names.add(part.name)
        elif isinstance(part, ast.AnnAssign | ast.Assign):
            targets = part.targets if isinstance(part, ast.Assign) else [part.target]
            names |= {n for t in targets for leaf in ast.walk(t) if (n := _name(leaf))}
    return {name for name in names if not name.startswith("_")}


def _name(leaf: ast.AST) -> str:
    """``x`` of `x` and of `self.x`."""
    if isinstance(leaf, ast.Attribute):
        return leaf.attr
    return leaf.id if isinstance(leaf, ast.Name) and leaf.id != "self" else ""
