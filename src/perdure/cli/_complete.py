"""What the shell offers after <Tab>: recipes, files of recipes, folders of runs, settings, names.

Knows the folders that runs usually lie in. Imports neither torch nor a parser: a shell waits for the answer.
"""

from __future__ import annotations

from pathlib import Path

import typer

PLACES = ("runs", ".")
"""Folders whose runs are offered before anything is typed."""
DEPTH = 3
"""Folders below one of `PLACES`, or below what is typed, that are looked into."""


def recipes(incomplete: str) -> list[str]:
    """Names of perdure's own recipes, then recipes of one's own."""
    from perdure.settings.registry import recipes as shipped

    typed = Path(incomplete)
    folder = typed if incomplete.endswith("/") else typed.parent
    own = sorted(str(file) for end in ("yaml", "yml") for file in folder.glob(f"*.{end}")) if folder.is_dir() else []
    return [name for name in [*shipped(), *own] if name.startswith(incomplete)]


def runs(incomplete: str) -> list[str]:
    """Folders of runs, and those that hold the seeds of one."""
    typed = Path(incomplete)
    places = [typed if incomplete.endswith("/") else typed.parent] if "/" in incomplete else map(Path, PLACES)
    found = {run for place in places for run in _below(place, DEPTH)}
    found |= {run.parent for run in found if run.name.startswith("seed_")}
    return sorted(str(run) for run in found if str(run).startswith(incomplete))


def recipes_and_runs(incomplete: str) -> list[str]:
    """Both."""
    return [*recipes(incomplete), *runs(incomplete)]


def settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """``section.key=`` of the recipe that is typed before."""
    from perdure.errors import PerdureError
    from perdure.recipe import load, resolved

    try:
        known = resolved(load(str(ctx.params.get("recipe") or ctx.params.get("what") or "")))
    except PerdureError:
        return []
    return [f"{name}=" for name in known if name.startswith(incomplete)]


def metrics(incomplete: str) -> list[str]:
    """Names of metrics."""
    from perdure.metrics import METRICS

    return [name for name in METRICS if name.startswith(incomplete)]


def data(incomplete: str) -> list[str]:
    """Names of data sets."""
    from perdure.settings.registry import names

    return [name for name in names("data") if name.startswith(incomplete)]


def _below(folder: Path, depth: int) -> list[Path]:
    """Folders with a ``recipe.yaml``; a run holds no other run."""
    if (folder / "recipe.yaml").is_file() and folder != Path("."):
        return [folder]
    if depth == 0 or not folder.is_dir():
        return []
    below = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    return [run for child in below for run in _below(child, depth - 1)]
