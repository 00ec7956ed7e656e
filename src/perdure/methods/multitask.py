"""Multitask tuning: after each task, one update is learned anew from all tasks' data so far. The upper bound.

It keeps all data, so it is no continual method. Where only the end counts, a stream with `multitask: true` and
`lora_sequential` gives the last row at a fraction of the time.
Needs: 24 GB GPU memory for 7 B parameters.

Knows low-rank updates and conversations. Does not know data sets or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from perdure import kept_examples
from perdure.families.instruction.adapters import Adapters
from perdure.families.instruction.export import export
from perdure.families.instruction.settings import Tuning
from perdure.families.instruction.tuning import copies, tune
from perdure.models.language_model import LanguageModel
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Examples, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of multitask tuning."""

    tuning: Tuning = Tuning()
    """How all tasks are learned together."""


class Multitask:
    """One update over the pretrained weights, and all conversations so far."""

    Config = Config
    answers = frozenset({"instruct"})
    not_updatable = "it trains once on the data of all tasks together, and an update brings the new ones alone"

    def __init__(self, config: Config, *, llm: LanguageModel) -> None:
        self.config, self.llm = config, llm
        self.adapters = Adapters(llm, config.tuning)
        self.seen: list[Example] = []
        """All conversations of the tasks so far."""
        self._projector = copies(llm.projector_state())

    def preprocess(self, example: Example, training: bool) -> Batch:
        return self.llm.preprocess(example, training)

    def collate(self, items: list[Batch]) -> Batch:
        return self.llm.collate(items)

    def learn(self, task: Task, runtime: Runtime) -> None:
        if len(task.train) == 0:
            return
        self.llm.load_projector(self._projector)
        self.adapters.start(runtime)
        self.seen = [*self.seen, *task.train]
        parameters = self.adapters.parameters()
        tune(self.llm, parameters, Examples.of(self.seen), self.loss, self.config.tuning, runtime=runtime)
        self.adapters.save_task(task, runtime)
        self.adapters.hold()

    def loss(self, batch: Batch) -> Tensor:
        return self.llm.answer_loss(batch, mean=self.config.tuning.mean)

    def predictor(self, query: Query):
        return self.llm.answerer(self.config.tuning)

    def export(self, folder: Path) -> str:
        """The model with its update, for plain transformers, and the update as a PEFT folder."""
        return export(self.adapters, folder, self.config.tuning, goes_on=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "factors": self.adapters.parameters() if self.seen else {},
            "projector": self.llm.projector_state(),
            "seen": kept_examples.pack(self.seen),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = kept_examples.unpack(state["seen"])
        if self.seen:
            self.adapters.load_factors(state["factors"])
        self.llm.load_projector(state["projector"])
