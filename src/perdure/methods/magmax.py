"""MagMax: fine-tune task after task, and answer with the largest change that any task made to each weight.

Marczak et al., MagMax: Leveraging Model Merging for Seamless Continual Learning, ECCV 2024. A task goes on from the
weights that the task before was fine-tuned to; what answers is the pretrained model plus a share of the merged change.

Needs: 8 GB GPU memory for ViT-B/16 and 128 images a step.

Knows what is kept between tasks. The merging is in `perdure.layers.merging`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from perdure.families.clip import classifier, whole
from perdure.layers import merging
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Task


@dataclass(frozen=True, kw_only=True)
class Config(whole.Settings):
    """Settings of MagMax; the defaults are the published ones."""

    merge: Literal["magmax", "average"] = "magmax"
    """The largest change of each weight, or the mean over tasks."""
    weight: Annotated[float, Field(ge=0)] = 0.5
    """How much of the merged change is added (lambda); of `average` 1 is the mean."""
    starts_from: Literal["previous", "pretrained"] = "previous"
    """A task goes on from the last one's fine-tuned weights, or begins anew."""


class Magmax(whole.Tuned):
    """State: the last task's fine-tuned weights, the merged change, the class names. Both are against `pretrained`."""

    Config = Config
    answers = frozenset({"classify"})
    not_merged = "it merges by itself"
    config: Config

    def __init__(self, config: Config, *, clip: Clip) -> None:
        super().__init__(config, clip)
        self.pretrained = whole.copied(self.parameters)
        self.tuned: dict[str, Tensor] | None = None
        self.merged: dict[str, Tensor] | None = None
        """MagMax: element by element the largest change; average: their sum."""
        self.tasks = 0

    def learn(self, task: Task, runtime: Runtime) -> None:
        classes = classifier.extend_classes(self.classes, task)
        start = self.tuned if self.tuned and self.config.starts_from == "previous" else self.pretrained
        whole.put(self.parameters, start)
        whole.tune(self.clip, self.parameters, task, classes, self.config, runtime)
        tuned = whole.copied(self.parameters)
        change = merging.task_vector(self.pretrained, tuned)
        if self.config.merge == "magmax":
            merged = merging.largest(self.merged, change)
        else:
            merged = merging.summed([self.merged, change]) if self.merged else change
        self.tuned, self.merged, self.tasks, self.classes = tuned, merged, self.tasks + 1, classes
        self._answer()

    def _answer(self) -> None:
        """Put the merged weights in place."""
        if self.merged is not None:
            share = self.config.weight / (self.tasks if self.config.merge == "average" else 1)
            whole.put(self.parameters, merging.add_vector(self.pretrained, self.merged, share))

    def state_dict(self) -> dict[str, Any]:
        kept = {} if self.tuned is None else {"tuned": self.tuned, "merged": self.merged}
        return {**kept, "tasks": self.tasks, "classes": list(self.classes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tuned, self.merged = state.get("tuned"), state.get("merged")
        self.tasks, self.classes = int(state["tasks"]), list(state["classes"])
        self._answer()
