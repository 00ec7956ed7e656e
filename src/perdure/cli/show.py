"""`perdure show`: a recipe with every setting, its meaning and its origin; or what a run has come to.

Knows how settings are laid out. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.cli import _complete
from perdure.cli._layout import columns, width

EXAMPLES = """
perdure show mg_clip/cifar100
perdure show my.yaml method.lr=1e-4 --json
perdure show runs/mg_clip-microworld/seed_0
"""


def command(
    what: Annotated[
        str,
        typer.Argument(
            help="recipe, file, or folder of a run", metavar="RECIPE|RUN", autocompletion=_complete.recipes_and_runs
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="write JSON")] = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="write the whole recipe as YAML")] = False,
) -> None:
    """Show all settings of a recipe, or a run.

    Each setting with its value, where that comes from (default, file:line, command line) and its meaning.
    """
    from perdure import recipe as recipes

    loaded = recipes.load(what, overrides or [])
    if as_yaml:
        print(recipes.to_yaml(loaded), end="")
        return
    table = recipes.resolved(loaded)
    run = _run(Path(what))
    if as_json:
        settings = {name: setting._asdict() for name, setting in table.items()}
        print(json.dumps({"settings": settings, **({"run": run} if run else {})}, indent=1, ensure_ascii=False))
        return
    if run:
        print("\n".join([*columns([[k, str(v)] for k, v in run.items()], total=width()), ""]))
    print("\n".join(_lines(table)))


def _lines(table: dict[str, Any]) -> list[str]:
    """One block a section: name, value, origin, meaning."""
    from perdure.recipe.text import flow

    sections: dict[str, list[list[str]]] = {}
    for name, setting in table.items():
        section, _, key = name.partition(".")
        if section == "models":
            role, _, key = key.partition(".")
            section = f"models.{role}"
        row = [key or section, flow(setting.value), setting.origin, setting.doc]
        sections.setdefault(section, []).append(row)
    lines = []
    for section, rows in sections.items():
        for row in rows:
            if len(row[1]) > 44:  # a long value takes the line of its meaning
                row[1], row[3] = "...", f"{row[1]}  {row[3]}"
        lines += [f"{section}:", *columns(rows, indent="  ", total=width()), ""]
    return lines[:-1]


def _run(folder: Path) -> dict[str, Any]:
    """What is known of a run from its files alone; empty if this is no run's folder."""
    from perdure import lock, run_files

    if not (folder / "recipe.yaml").is_file():
        return {}
    state: dict[str, Any] = {"folder": str(folder)}
    scores, card = run_files.read_scores(folder), run_files.read_card(folder)
    rows = scores.get("rows", [])
    done = max((row["after"] for row in rows), default=-1) + 1
    total = len(scores.get("tasks", []))
    state["state"] = "finished" if card else f"{done} of {total} tasks" if total else "no task finished"
    if at_work := lock.holder(folder):
        state["running"] = str(at_work)
    state |= _last(rows, done)
    for key in ("device", "precision", "wall_seconds", "recipe_sha256"):
        if key in card:
            state[key] = card[key]
    for role, facts in card.get("weights", {}).items():
        state[f"weights of {role}"] = json.dumps(facts, ensure_ascii=False)
    return state


def _last(rows: Sequence[Mapping[str, Any]], done: int) -> dict[str, str]:
    """Means over the tasks tested last, weighted by their examples, of each task's first metric that is a number."""
    found: dict[str, list[tuple[float, int]]] = {}
    for row in (row for row in rows if row["after"] == done - 1):
        numbers = ((name, value) for name, value in row["values"].items() if isinstance(value, int | float))
        for name, value in islice(numbers, 1):
            found.setdefault(name, []).append((value, row["n"]))
    counts = {name: sum(n for _, n in pairs) for name, pairs in found.items()}
    return {
        f"{name} after task {done}": f"{sum(v * n for v, n in pairs) / max(counts[name], 1):.2f} "
        f"({counts[name]} examples)"
        for name, pairs in found.items()
    }
