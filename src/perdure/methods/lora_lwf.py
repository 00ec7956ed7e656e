"""Learning without forgetting: the tuned language model keeps the answers' distributions of the one before the task.

Li and Hoiem, Learning without Forgetting, 2016 (arXiv 1606.09282), on the answers' tokens of the new task's data.
Needs: 28 GB GPU memory for 7 B parameters, 1.3 GB more for each task (rank 128, half precision).

Knows low-rank updates. Does not know data sets or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from perdure.families.instruction.adapters import Adapters
from perdure.families.instruction.export import export
from perdure.families.instruction.settings import Tuning
from perdure.families.instruction.tuning import copies, tune
from perdure.layers.losses import distillation
from perdure.models.language_model import LanguageModel, mean_answer_loss
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of learning without forgetting."""

    tuning: Tuning = Tuning()
    """How one task is learned."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the distillation."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Of both distributions."""


class LoraLwf:
    """A language model with merged updates; the teacher is itself without the present one."""

    Config = Config
    answers = frozenset({"instruct"})

    def __init__(self, config: Config, *, llm: LanguageModel) -> None:
        self.config, self.llm = config, llm
        self.adapters = Adapters(llm, config.tuning)
        self.tasks = 0
        """Tasks learned."""
        self._teacher: dict[str, Tensor] | None = None
        """The projector as it was before the task."""

    def preprocess(self, example: Example, training: bool) -> Batch:
        return self.llm.preprocess(example, training)

    def collate(self, items: list[Batch]) -> Batch:
        return self.llm.collate(items)

    def learn(self, task: Task, runtime: Runtime) -> None:
        if len(task.train) == 0:
            return
        self.adapters.start(runtime)
        if self.tasks:
            self._teacher = copies(self.llm.projector_state())
        parameters = self.adapters.parameters()
        tune(self.llm, parameters, task.train, self.loss, self.config.tuning, runtime=runtime)
        self.adapters.save_task(task, runtime)
        self._teacher = None
        self.tasks += 1
        self.adapters.merge()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the answers plus the divergence from the teacher's distributions."""
        logits, labels, rows = self.llm.answer_logits(batch)
        count = len(batch["input_ids"])
        answers = mean_answer_loss(logits, labels, rows, rows=count, mean=self.config.tuning.mean)
        if self._teacher is None:
            return {"loss": answers}
        kept = distillation(logits, self._teacher_logits(batch), temperature=self.config.temperature)
        return {"loss": answers + self.config.weight * kept, "answers": answers, "kept": kept}

    def merged(self, how: str) -> Mapping[str, Tensor]:
        return self.adapters.merged(how)

    def products(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        return self.adapters.products()

    def put_products(self, products: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self.adapters.put_products(products)

    def predictor(self, query: Query):
        return self.llm.answerer(self.config.tuning)

    def export(self, folder: Path) -> str:
        """The merged model, for plain transformers."""
        return export(self.adapters, folder, self.config.tuning)

    def state_dict(self) -> dict[str, Any]:
        projector = self.llm.projector_state()
        return {
            "weights": self.adapters.weights(),
            "stacked": self.adapters.stacked(),
            "projector": projector,
            "tasks": self.tasks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.adapters.load(state["weights"], state.get("stacked", {}))
        self.llm.load_projector(state["projector"])
        self.tasks = state["tasks"]

    @torch.no_grad()
    def _teacher_logits(self, batch: Batch) -> Tensor:
        """Logits of the model before the task, at the same places."""
        assert self._teacher is not None
        with self.llm.with_projector(self._teacher), self.adapters.off():
            return self.llm.answer_logits(batch)[0]
