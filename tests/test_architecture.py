"""The shape of the house: who may import whom, how long a function and a file may be, what no file is called."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "perdure"
FILES = sorted(SOURCE.rglob("*.py"))

LAYER_0 = {"types", "errors", "nearest", "text_files", "demands"}
LAYER_1 = {
    *("registry", "config", "setting_faults", "runtime", "progress", "checkpoint", "losses", "memory", "nn", "metrics"),
    *("source_settings", "keys", "sharding", "zero", "loading", "training", "images", "augment", "rehearsal"),
    *("draws", "devices", "precision", "lock", "collectives", "events", "placing", "compiling"),
}
ALLOWED: dict[str, set[str]] = {
    **dict.fromkeys(LAYER_0, LAYER_0),
    **dict.fromkeys(LAYER_1, LAYER_0 | LAYER_1),
    "models": LAYER_0 | LAYER_1 | {"models"},
    "data": LAYER_0 | LAYER_1 | {"data"},
    "methods": LAYER_0 | LAYER_1 | {"models"},
    "streams": LAYER_0 | LAYER_1 | {"data"},
    "prepare": LAYER_0 | LAYER_1 | {"data", "models", "prepare"},
    "evaluate": LAYER_0 | LAYER_1,
    "run": LAYER_0 | LAYER_1 | {"evaluate"},
    "report": LAYER_0 | LAYER_1 | {"report"},
}
"""Package or module -> what it may import; those that are not listed may import everything below the command."""
ABOVE = {"recipe", "device_memory", "testing", "trial", "api", "cli", "__main__", ""}
FORBIDDEN_NAMES = {"utils", "util", "common", "misc", "helpers", "helper"}
LONG_FUNCTIONS: set[str] = set()
"""Functions of more than 50 lines, each with its reason beside it."""


def part(path: Path) -> str:
    """The package or module directly under perdure that a file belongs to."""
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py") if relative.parts[0] != "__init__.py" else ""


def imports(tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """Modules of ours that a file imports, anywhere in it, as names below ``perdure``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (tuple(name.split(".")[1:]) for name in names if name.split(".")[0] == "perdure")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "perdure":
            inside = tuple(node.module.split(".")[1:])
            yield from ((*inside, alias.name) for alias in node.names)


def is_registered(place: str, stem: str) -> bool:
    """Whether a name of a place is one that a recipe can give: it has settings. Others are shared by their place."""
    files = (SOURCE / place / f"{stem}.py", SOURCE / place / stem / "__init__.py")
    return any(file.exists() and "\nclass Config" in file.read_text(encoding="utf-8") for file in files)


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_go_down_the_layers(path):
    here = part(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for found in imports(tree):
        assert found, f"{name(path)} imports the package itself"
        if here in ALLOWED:
            assert found[0] in ALLOWED[here] | {here}, f"{name(path)} imports perdure.{'.'.join(found)}"
        if here in ("methods", "streams") and found[0] == here:
            own = path.relative_to(SOURCE / here).parts[0].removesuffix(".py")
            assert found[1] == own or not is_registered(here, found[1]), f"{name(path)} imports {here}.{found[1]}"
        assert here in ("cli", "__main__") or found[0] != "cli", f"{name(path)} imports the command"


def test_every_part_has_its_layer():
    parts = {part(path) for path in FILES}
    assert parts <= set(ALLOWED) | ABOVE, parts - set(ALLOWED) - ABOVE


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_functions_are_short_and_files_have_names_and_say_what_they_know(path):
    text = path.read_text(encoding="utf-8")
    limit = 500 if part(path) == "methods" else 400
    assert len(text.splitlines()) <= limit, f"{name(path)} has more than {limit} lines"
    assert path.stem not in FORBIDDEN_NAMES
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip(), f"{name(path)} does not say what it knows"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            where = f"{name(path)}:{node.name}"
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 50 or where in LONG_FUNCTIONS, f"{where} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_swallows_every_exception_or_unpickles(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.dump(node.type) if node.type else "everything"
            broad = node.type is None or "'Exception'" in caught or "'BaseException'" in caught
            assert not broad or name(path) == "cli/__init__.py", f"{name(path)}:{node.lineno} catches {caught}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            assert safe, f"{name(path)}:{node.lineno} loads pickles"


def test_no_model_name_is_hidden_in_the_core():
    """No ``if method == ...``: the core knows Protocols only."""
    optimizers = {"sgd"}  # also the name of a method
    methods = {p.stem for p in (SOURCE / "methods").glob("*") if not p.stem.startswith("_")} - optimizers
    for path in (SOURCE / f"{n}.py" for n in ("run", "evaluate", "training", "runtime", "loading", "checkpoint")):
        strings = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        assert not strings & methods


def test_test_files_have_names_of_their_own():
    """pytest imports them by base name."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
