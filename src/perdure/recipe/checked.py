"""A recipe as Python states it, and what can be found of it before anything is trained.

Knows sections as mappings, faults, folders and the plan of a stream. Does not know how a plan is laid out. Imports no
torch but for trackers; the data's reader may.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perdure import recipe as recipes
from perdure.files.folders import require_folder
from perdure.recipe import Recipe, given_models
from perdure.recipe.plan import passes
from perdure.recipe.text import flow
from perdure.settings import config


@dataclass(frozen=True, kw_only=True, repr=False)
class Checked:
    """A recipe without a fault; with its stream where its data were read."""

    recipe: Recipe
    stream: Any = None

    def with_data(self) -> Checked:
        """The same with its data read, and the method known to fit them. Raises as `check` does."""
        stream = recipes.build_stream(self.recipe)
        recipes.check_fit(self.recipe, stream)
        given_models.require_weights(self.recipe)
        return replace(self, stream=stream)

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """One mapping a task, empty where no data were read: ``task`` (from 1), ``kind``, ``classes``, the examples in
        ``train``, ``validation`` and ``test``, ``steps`` (of each training pass: a number, or
        the word for ``epochs`` that gives none) and ``name``."""
        pairs, found = passes(self.recipe), []
        for task in self.stream or ():
            steps = [n if (n := each.steps(task)) is not None else each.epochs for each in pairs]
            counts = {split: len(getattr(task, split)) for split in ("train", "validation", "test")}
            head = {"task": task.index + 1, "kind": task.kind, "classes": len(task.candidates)}
            found.append({**head, **counts, "steps": steps, "name": task.name})
        return found

    def __repr__(self) -> str:
        return f"{self.recipe.run.name}: {len(recipes.resolved(self.recipe))} settings, no fault"


def check(
    asked: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    data: bool = True,
    name: str | None = None,
    **sections: Any,
) -> Checked:
    """``perdure.check``: what ``perdure check`` finds; nothing is written and nothing trained.

    Args:
        asked: as for ``perdure.run``, with `overrides`, `name` and `sections`.
        data: also read the data, and see that the method can go through its tasks.

    Returns:
        The recipe, its stream, and what each task holds (``.tasks``).

    Raises:
        RecipeError: all faults at once, each with its line; or method, data and machine do not fit.
        DataError: the data are not there, or are damaged.
        MissingExtra: a tracker is not installed.
    """
    loaded = stated(asked, overrides, name=name, sections=sections)
    if loaded.run.trackers:
        from perdure.runtime import check_tracker  # brings torch

        for tracker in loaded.run.trackers:
            check_tracker(tracker)
    require_folder(loaded.folder(loaded.seeds[0]), setting="run.out")
    found = Checked(recipe=loaded)
    return found.with_data() if data else found


def require_folders(asked: Recipe, *, again: bool) -> None:
    """RecipeError if a folder in which there is work to do cannot be written to."""
    for folder in map(asked.folder, asked.seeds):
        if again or not (folder / "card.json").is_file():
            require_folder(folder, setting="run.out")


def stated(
    asked: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str],
    *,
    name: str | None,
    sections: Mapping[str, Any],
) -> Recipe:
    """The recipe with its settings changed: `overrides`, then `sections`, then ``run.name``."""
    given = list(overrides)
    for section, part in sections.items():
        pairs = {f"{section}.{k}": v for k, v in part.items()} if isinstance(part, Mapping) else {section: part}
        given += [f"{key}={flow(config.plain(value))}" for key, value in pairs.items()]
    return recipes.load(asked, given if name is None else [*given, f"run.name={flow(name)}"])
