"""Every notebook runs from its first cell to its last in an empty folder, without a server."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def shown(source, names):
    """Run a cell; what its last line shows, as a notebook does."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    if last is None:
        return ""
    value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    return value._repr_markdown_() if hasattr(value, "_repr_markdown_") else repr(value)


def test_there_are_notebooks_for_a_run_for_own_images_and_for_adapting():
    assert [path.stem for path in NOTEBOOKS] == ["adapt_one_image", "first_run", "own_images"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end_and_its_last_cell_shows_something(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    book = json.loads(path.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    names = {}
    assert [shown("".join(cell["source"]), names) for cell in code][-1] not in ("", "None")
