"""What a run will need, by arithmetic on its settings: refused before anything is built where no machine has it.

Knows memory, disk and steps as numbers. What a thing needs its `Config` says: a method ``bytes_needed(self)``, the
least that it will hold in memory. Does not know models or data sets; imports no torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import psutil

from perdure.errors import RecipeError
from perdure.files.sizes import in_words
from perdure.recipe.plan import passes
from perdure.recipe.sections import Recipe
from perdure.settings import config, registry
from perdure.settings.config import Named
from perdure.types import Stream

MOST_STEPS = 10**9
"""Of a whole run: twelve days at a thousand steps a second, which only the smallest network makes."""


def require_room(recipe: Recipe) -> None:
    """Assert that this machine's memory holds what is built, and the disk the weights of the models.

    Raises:
        RecipeError: it names the section, and how much is lacking.
    """
    for where, needed in _needed(recipe, bytes_needed):
        require_memory(where, needed)
    written = sum(needed for where, needed in _needed(recipe, bytes_written) if where.startswith("models."))
    free = _free(recipe.run.out)
    if written > free:
        raise RecipeError(
            f"a checkpoint needs at least {in_words(written)}, {in_words(free)} are free",
            where=str(recipe.run.out),
            todo="Free some space, or set run.out to a folder on another disk.",
        )


def require_memory(where: str, needed: int) -> None:
    """Assert that this machine's memory holds so many bytes. RecipeError names `where`."""
    memory = psutil.virtual_memory().total
    if needed > memory:
        raise RecipeError(
            f"needs at least {in_words(needed)} of memory",
            where=where,
            expected=f"less than the {in_words(memory)} that this machine has",
            todo="Choose smaller sizes.",
        )


def require_steps(recipe: Recipe, stream: Stream) -> None:
    """Assert that the run can come to an end.

    Raises:
        RecipeError: it would take more than `MOST_STEPS` steps.
    """
    pairs = passes(recipe)
    steps = sum(each.steps(task) or 0 for task in stream for each in pairs)
    if steps > MOST_STEPS:
        names = " and ".join(dict.fromkeys(f"method.{each.setting}" for each in pairs))
        raise RecipeError(
            f"the run would take {steps:.3g} steps, {_years(steps)} at a thousand a second",
            where=names,
            expected=f"at most {MOST_STEPS:.0e} steps in all",
            todo="Choose fewer epochs.",
        )


def bytes_needed(settings: Any) -> int:
    """The least memory that a thing of these settings takes; 0 where its `Config` does not say."""
    return int(settings.bytes_needed()) if hasattr(settings, "bytes_needed") else 0


def bytes_written(settings: Any) -> int:
    """What a checkpoint holds of a thing, where its `Config` says so; else all of it."""
    return int(settings.bytes_written()) if hasattr(settings, "bytes_written") else bytes_needed(settings)


def _needed(recipe: Recipe, count: Callable[[Any], int]) -> Iterator[tuple[str, int]]:
    """(dotted name, bytes) of all that the recipe names, things within things too."""
    models = ((f"models.{role}", each) for role, each in recipe.models.items())
    named = [("stream", recipe.stream), ("method", recipe.method), *models]
    for where, each in named:
        yield from _of(where, each, count)


def _of(where: str, named: Named, count: Callable[[Any], int]) -> Iterator[tuple[str, int]]:
    settings: Any = config.parse(
        registry.settings(cast(registry.Place, named.place), named.name), named.settings, where=where
    )
    yield where, count(settings)
    for key in config.field_types(type(settings)):
        value = getattr(settings, key)
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Named):
                yield from _of(f"{where}.{key}", inner, count)


def _years(steps: int) -> str:
    days = steps / 1000 / 86400
    return f"{days:.0f} days" if days < 1000 else f"{days / 365:.3g} years"


def _free(path: Path) -> int:
    """Bytes that are free on the disk of a path, or of the nearest folder above it that is there."""
    path = path.absolute()
    while not os.path.lexists(path):
        path = path.parent
    return shutil.disk_usage(path).free
