"""How long a recipe trains, as far as its settings say: steps of each task.

Knows the settings `epochs` and `batch_size` of a method (also with a word in front, ``visual_epochs``, or within
nested settings); a `Config` that trains otherwise says how by `passes()`, fields of `Passes` by name. Does not know
what a method does with them: the counts are of one pass over a task's own training examples an epoch; what is replayed
comes on top. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from perdure.recipe.sections import Recipe
from perdure.settings import config, registry
from perdure.types import Task


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Passes over the examples of a task, as one pair of settings says."""

    setting: str
    """Name of the setting, ``epochs`` or ``visual_epochs``."""
    epochs: int | str
    """A word (`auto`) where the method decides."""
    batch_size: int
    first_task_only: bool = False
    """Later tasks are learned without steps."""

    def steps(self, task: Task) -> int | None:
        """Steps of a task; None where the method decides. The stream's own batches, where it has them, come first."""
        if self.first_task_only and task.index:
            return 0
        if isinstance(self.epochs, str):
            return None
        each = len(task.facts.get("batches", ())) or math.ceil(len(task.train) / self.batch_size)
        return self.epochs * each


def passes(recipe: Recipe) -> list[Passes]:
    """Pairs of epochs and batch size in the method's settings, in their order; those of no epochs are left out."""
    return _passes(_settings(recipe))


def largest_batch(recipe: Recipe) -> int:
    """Examples of the largest step, or batch, that the settings speak of; 1 where they speak of none."""
    settings = _settings(recipe)
    plain = getattr(settings, "batch_size", 1)
    return max([each.batch_size for each in _passes(settings)] or [plain if isinstance(plain, int) else 1])


def _settings(recipe: Recipe) -> Any:
    cls = registry.settings(cast(registry.Place, recipe.method.place), recipe.method.name)
    return config.parse(cls, recipe.method.settings, where="method")


def _passes(settings: Any) -> list[Passes]:
    return [Passes(**each) for each in settings.passes()] if hasattr(settings, "passes") else list(_pairs(settings))


def _pairs(settings: Any) -> Iterator[Passes]:
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    for name, value in values.items():
        if dataclasses.is_dataclass(value):
            yield from _pairs(value)
        elif (name == "epochs" or name.endswith("_epochs")) and not name.startswith(("min_", "max_", "fallback_")):
            own = values.get(name.removesuffix("epochs") + "batch_size", values.get("batch_size"))
            if isinstance(own, int) and value and isinstance(value, int | str):
                yield Passes(setting=name, epochs=value, batch_size=own)
