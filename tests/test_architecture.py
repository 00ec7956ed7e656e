"""The shape of the house: who may import whom, how long a function and a file may be, what no file is called."""

import ast
import graphlib
from collections.abc import Container, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "perdure"
FILES = sorted(SOURCE.rglob("*.py"))

ROOMS = """
errors keys
files
settings
images checkpoint run_folder
runtime videos
types draws
kept_examples
demands loading
training features
layers
metrics models
families
data
streams methods prepare
evaluate gate retention
calibration merging
loop reporting
recipe
device_memory recording resuming
testing
api
auditing exports prediction updating sweeping
serving
cli
__main__
"""
"""From the bottom. A file imports from its own room and from rows above its own in this list, never from below."""
ROWS = {room: row for row, rooms in enumerate(ROOMS.strip().splitlines()) for room in rooms.split()}
NEVER = {
    "streams": {"models", "families", "layers"},
    "data": {"models", "families", "layers"},
    "methods": {"data"},
    "evaluate": {"models", "families", "layers", "data"},
    "loop": {"models", "families", "layers", "data"},
    "reporting": {"models", "families", "layers", "data"},
}
"""Rooms that lie lower and are none of a room's business all the same."""
FORBIDDEN_NAMES = {"utils", "util", "common", "misc", "helpers", "helper"}
LONG_FUNCTIONS: set[str] = set()
"""Functions of more than 50 lines, each with its reason beside it."""


def part(path: Path) -> str:
    """The package or module directly under perdure that a file belongs to."""
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py") if relative.parts[0] != "__init__.py" else ""


def imports(tree: ast.AST) -> Iterator[tuple[str, ...]]:
    """Modules of ours that a file imports, anywhere in it and also for types alone, as names below ``perdure``."""
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
def test_imports_go_down_the_rooms(path):
    here = part(path)
    for found in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if not here or found[0] in (here, "__version__"):
            continue
        where = f"{name(path)} imports perdure.{'.'.join(found)}"
        assert ROWS[found[0]] < ROWS[here] and found[0] not in NEVER.get(here, ()), where


@pytest.mark.parametrize("path", [f for f in FILES if part(f) in ("methods", "streams")], ids=name)
def test_what_has_a_name_in_recipes_is_not_imported_by_another(path):
    here = part(path)
    own = path.relative_to(SOURCE / here).parts[0].removesuffix(".py")
    for found in imports(ast.parse(path.read_text(encoding="utf-8"))):
        if found[0] == here:
            assert found[1] == own or not is_registered(here, found[1]), f"{name(path)} imports {here}.{found[1]}"


def test_no_room_goes_round_in_a_circle():
    """Files of one room import each other, but no two of them each other in turn."""
    files = {
        dotted(path): {".".join(f) for f in imports(ast.parse(path.read_text(encoding="utf-8")))} for path in FILES
    }
    uses = {file: {known(target, files) for target in targets} - {file, ""} for file, targets in files.items()}
    try:
        graphlib.TopologicalSorter(uses).prepare()
    except graphlib.CycleError as fault:
        pytest.fail(" imports ".join(reversed(fault.args[1])))


def dotted(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def known(target: str, files: Container[str]) -> str:
    """The file that an import names: its last part may be a name in the file."""
    return target if target in files else target.rpartition(".")[0]


def test_every_part_has_its_room_and_the_design_shows_them():
    assert {part(path) for path in FILES} - {""} == set(ROWS)
    shown = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert f"```\n{ROOMS.strip()}\n```" in shown, "docs/design.md shows other rooms"


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
    for path in (
        SOURCE / f"{n}.py" for n in ("loop", "evaluate", "training", "runtime/__init__", "loading", "checkpoint")
    ):
        strings = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        assert not strings & methods


def test_test_files_have_names_of_their_own():
    """pytest imports them by base name."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
