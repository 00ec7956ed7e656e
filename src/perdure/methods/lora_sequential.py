"""Sequential low-rank tuning: each task after the other, with nothing against forgetting.

The lower bound of continual instruction tuning (LoRA of CoIN, arXiv 2403.08350). An update is merged after its task,
or goes on to be trained (`merge: false`, as CoIN does).
Needs: 24 GB GPU memory for 7 B parameters, 1.3 GB more for each task (rank 128, half precision).

Knows low-rank updates. Does not know data sets or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from perdure.families.instruction.adapters import Adapters
from perdure.families.instruction.export import export
from perdure.families.instruction.settings import Tuning
from perdure.families.instruction.tuning import tune
from perdure.models.language_model import LanguageModel
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of sequential low-rank tuning."""

    tuning: Tuning = Tuning()
    """How one task is learned."""
    merge: bool = True
    """Merge each update and start a fresh one (SEFE's baseline), or train the same one throughout (CoIN's)."""


class LoraSequential:
    """A language model with merged updates, or with one that goes on."""

    Config = Config
    answers = frozenset({"instruct"})

    def __init__(self, config: Config, *, llm: LanguageModel) -> None:
        self.config, self.llm = config, llm
        self.adapters = Adapters(llm, config.tuning)
        self.begun = False
        """Whether the update that goes on has been trained."""

    def preprocess(self, example: Example, training: bool) -> Batch:
        return self.llm.preprocess(example, training)

    def collate(self, items: list[Batch]) -> Batch:
        return self.llm.collate(items)

    def learn(self, task: Task, runtime: Runtime) -> None:
        if len(task.train) == 0:
            return
        if self.begun and not self.config.merge:
            self.adapters.enable(True)
        else:
            self.adapters.start(runtime)
        parameters = self.adapters.parameters()
        tune(self.llm, parameters, task.train, self.loss, self.config.tuning, runtime=runtime)
        self.adapters.save_task(task, runtime)
        self.begun = True
        if self.config.merge:
            self.adapters.merge()
        else:
            self.adapters.hold()

    def loss(self, batch: Batch) -> Tensor:
        return self.llm.answer_loss(batch, mean=self.config.tuning.mean)

    def merged(self, how: str) -> Mapping[str, Tensor]:
        return self.adapters.merged(how) if self.config.merge else {}

    def products(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        return self.adapters.products() if self.config.merge else {}

    def put_products(self, products: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        self.adapters.put_products(products)

    def predictor(self, query: Query):
        return self.llm.answerer(self.config.tuning)

    def export(self, folder: Path) -> str:
        """The merged model; of an update that goes on, also its PEFT folder."""
        return export(self.adapters, folder, self.config.tuning, goes_on=not self.config.merge)

    def state_dict(self) -> dict[str, Any]:
        own = self.adapters.weights() if self.config.merge else self.adapters.parameters()
        stacked = self.adapters.stacked() if self.config.merge else {}
        return {"own": own, "stacked": stacked, "projector": self.llm.projector_state(), "begun": self.begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.begun = state["begun"]
        if self.config.merge:
            self.adapters.load(state["own"], state.get("stacked", {}))
        elif self.begun:
            self.adapters.load_factors(state["own"])
        self.llm.load_projector(state["projector"])
