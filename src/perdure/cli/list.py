"""`perdure list`: what there is, one line each.

Knows the places. Imports no method, model or data set: names, summaries and needs are read from their files.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Any, cast

import typer

from perdure.cli._layout import columns, width

EXAMPLES = """
perdure list
perdure list recipes cifar
perdure list methods --json
perdure list runs
"""
WHAT = ("methods", "recipes", "streams", "data", "models", "metrics")
LISTS = (*WHAT, "runs")
FOLDED = ("recipes", "data", "metrics")
"""Places that the list of everything shows by name only."""


def command(
    what: Annotated[
        str,
        typer.Argument(
            help="methods, recipes, streams, data, models, metrics or runs", autocompletion=lambda: list(LISTS)
        ),
    ] = "",
    word: Annotated[str, typer.Argument(help="only lines that hold this word")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="write JSON")] = False,
) -> None:
    """List what there is: methods, recipes, data.

    Also streams, models and metrics, each with one line and what it needs; and runs, with how far they have come.
    """
    if what and what not in LISTS:
        from perdure.errors import RecipeError
        from perdure.settings.suggestions import nearest

        near = nearest(what, LISTS)
        todo = f"Did you mean `{near}`?" if near else ""
        raise RecipeError(f"there is no list of `{what}`", expected=", ".join(LISTS), todo=todo)
    whole = bool(word or as_json)
    found = {place: _matching(entries(place, whole=whole), word) for place in ([what] if what else WHAT)}
    if as_json:
        print(json.dumps(found[what] if what else found, indent=1, ensure_ascii=False))
        return
    total = width()
    for place, items in found.items():
        if not what:
            print(f"{place}:")
        if place in FOLDED and not what and not word:
            print("\n".join(_folded(place, items)))
            continue
        rows = [[item["name"], _line(item)] for item in items]
        lines = columns(rows, indent="" if what else "  ", total=total if what else None) or ["  none"]
        print("\n".join(lines if what else [_cut(line, total) for line in lines]))
    if word and not any(found.values()):
        raise SystemExit(1)


def entries(place: str, *, whole: bool = True) -> list[dict[str, Any]]:
    """Name, summary and needs of everything in a place; if `whole`, also what methods answer and take."""
    if place == "runs":
        from perdure.cli import _runs

        return _runs.entries()
    if place == "recipes":
        from perdure.settings.registry import recipes

        return [{"name": name, **recipe_head(name)} for name in recipes()]
    if place == "metrics":
        from perdure.metrics import METRICS

        return [{"name": n, "summary": f"{m.docs} [{m.unit} {m.arrow}]", "needs": m.needs} for n, m in METRICS.items()]
    from perdure.settings import registry

    at = cast(registry.Place, place)
    items = []
    for name in registry.names(at):
        about = registry.describe(at, name) if whole else registry.summarize(at, name)
        item: dict[str, Any] = {"name": name, "summary": about.summary, "needs": about.needs}
        if place == "methods" and whole:
            item |= {"answers": list(about.answers), "roles": list(about.roles)}
        items.append(item)
    return items


def recipe_head(name: str) -> dict[str, str]:
    """First line and `Needs:` line of a recipe's opening comment."""
    from perdure.recipe.heading import heading
    from perdure.settings.registry import RECIPES

    lines = heading((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    needs = next((line.removeprefix("Needs:").strip() for line in lines if line.startswith("Needs:")), "")
    return {"summary": lines[0] if lines else "", "needs": needs}


def _folded(place: str, items: list[dict[str, Any]]) -> list[str]:
    """Names alone; of recipes, how many each method has."""
    names = [item["name"] for item in items]
    if place == "recipes":
        counts = Counter(name.partition("/")[0] for name in names)
        names = [f"{method} {n}" for method, n in counts.items()]
    head = f"{len(items)} by method:" if place == "recipes" else f"{len(items)}:"
    return columns([[head, f"{', '.join(names)}; see: perdure list {place} WORD"]], indent="  ", total=width())


def _cut(line: str, total: int | None) -> str:
    """One line a thing, so that the list of everything stays short; the list of one place is whole."""
    return line if total is None or len(line) <= total else line[: total - 3] + "..."


def _matching(items: list[dict[str, Any]], word: str) -> list[dict[str, Any]]:
    return [item for item in items if word.lower() in json.dumps(item, ensure_ascii=False).lower()]


def _line(item: dict[str, Any]) -> str:
    needs = item["needs"].rstrip(".")
    return f"{item['summary']} (needs {needs})" if needs else item["summary"]
