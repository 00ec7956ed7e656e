"""A recipe tried for a few steps: the real data, models and method, and nothing kept on disk.

Knows the first and the last task, the shortest way between them, and what each step gave. Does not know methods or
models by name, nor how the result is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from perdure import device_memory
from perdure import recipe as recipes
from perdure.recipe import Recipe
from perdure.recipe.plan import largest_batch
from perdure.runtime.devices import seed_torch
from perdure.runtime.placing import place
from perdure.testing.miniature import Stage, runtime_of, shortened
from perdure.types import Stream


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a trial showed."""

    stages: list[Stage]
    """Of the first task, then of the last, in order; empty where the method learns without steps."""
    device: str
    precision: str
    examples: dict[int, int]
    """Training examples that were used, by the task's index."""
    peak_memory: dict[str, int]
    """Bytes: `resident`, and `gpu` on a GPU."""


def first_steps(asked: Recipe, stream: Stream, steps: int) -> Trial:
    """Learn the first and the last task with `steps` steps in each of their stages, from as many examples as those
    take; the tasks between with one step each, because the last one builds on them.

    Raises:
        TrainingError: a loss is not finite.
    """
    asked = asked.for_seed(asked.seeds[0])
    runtime = runtime_of(asked, None)
    method, _ = recipes.build_method(asked, asked.run.seed)
    place(method, runtime)
    tried, used = {0, len(stream) - 1}, {}
    with device_memory.explained(asked, runtime):
        for task in stream:
            runtime.limit = steps if task.index in tried else 1
            little = shortened(task, runtime.limit * largest_batch(asked))
            used[task.index] = len(little.train)
            runtime.task = task.index
            seed_torch(runtime.key("learn"))
            method.learn(little, runtime)
    return Trial(
        stages=[stage for stage in runtime.stages if stage.task in tried],
        device=str(runtime.device),
        precision=asked.run.precision,
        examples={index: used[index] for index in sorted(tried)},
        peak_memory=runtime.peak_memory(),
    )
