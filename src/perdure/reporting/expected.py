"""What a recipe expects of a run, and whether the run is still what the published numbers are of.

Knows `expect` and the settings that a run has changed beside it. Does not know the run's own numbers. Where data,
weights, stream or method are others, nothing published is comparable; what else differs is said beside the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perdure.reporting.load import Run, shown


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A published number as the recipe states it."""

    metric: str
    value: float
    source: str
    note: str


def expected(run: Run) -> list[Expected]:
    """The published numbers that are of this run's data, weights, stream and method; none where they are of others."""
    return [
        Expected(
            metric=str(item["metric"]),
            value=item["value"],
            source=str(item.get("source") or ""),
            note="; ".join(filter(None, (str(item.get("note") or ""), _said(run, _others(run, item))))),
        )
        for item in _items(run)
        if not _decisive(_others(run, item))
    ]


def left_out(run: Run) -> str:
    """Why published numbers are not shown, in a sentence; empty where they are."""
    found = {name: was for item in _items(run) for name, was in _decisive(_others(run, item)).items()}
    if not found:
        return ""
    return (
        f"The recipe's published numbers are left out, for they are of another experiment: {_said(run, found)}. "
        "Where they hold all the same, state `expect` in a recipe of your own"
    )


def _items(run: Run) -> list[Mapping[str, Any]]:
    """Well-formed ones: a recipe may have been edited by hand."""
    items = run.recipe.get("expect")
    return [
        item
        for item in (items if isinstance(items, list) else [])
        if isinstance(item, Mapping) and isinstance(item.get("value"), int | float) and "metric" in item
    ]


def _others(run: Run, item: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted settings that are not those beside which the number is stated -> what they were there."""
    stated = item.get("stated_with")
    return {str(name): was for name, was in stated.items()} if isinstance(stated, Mapping) else {}


def _decisive(others: Mapping[str, Any]) -> dict[str, Any]:
    """Those by which it is another experiment: names of stream, method and data, and the models."""
    return {name: was for name, was in others.items() if _is_decisive(name.split("."), was)}


def _is_decisive(path: list[str], was: Any) -> bool:
    match path[0]:
        case "method":
            return path[1:] == ["name"]
        case "models":
            return path[-1] in ("name", "weights")
        case "stream":
            of_data = isinstance(was, list) and any(isinstance(one, Mapping) and "name" in one for one in was)
            return path[-1] in ("name", "sets") or of_data
    return False


def _said(run: Run, others: Mapping[str, Any]) -> str:
    """``method.epochs was 50, now 1; ...``."""
    return "; ".join(f"{name} was {shown(was)}, now {shown(_at(run.recipe, name))}" for name, was in others.items())


def _at(tree: Any, name: str) -> Any:
    for key in name.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
