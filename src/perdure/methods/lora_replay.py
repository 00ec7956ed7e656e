"""Sequential low-rank tuning with replay: some conversations of each task are kept and mixed into the later ones.

Needs: 24 GB GPU memory for 7 B parameters, 1.3 GB more for each task (rank 128, half precision).

Knows low-rank updates and conversations. Does not know data sets or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from perdure import kept_examples
from perdure.families.instruction.adapters import Adapters
from perdure.families.instruction.export import export
from perdure.families.instruction.settings import Tuning
from perdure.families.instruction.tuning import tune
from perdure.models.language_model import LanguageModel
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Examples, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of replay."""

    tuning: Tuning = Tuning()
    """How one task is learned."""
    per_task: Annotated[int, Field(ge=0)] = 1000
    """Conversations kept of each task."""


class LoraReplay:
    """A language model with merged updates, and conversations of all tasks."""

    Config = Config
    answers = frozenset({"instruct"})

    def __init__(self, config: Config, *, llm: LanguageModel) -> None:
        self.config, self.llm = config, llm
        self.adapters = Adapters(llm, config.tuning)
        self.kept: list[Example] = []
        """Conversations of the tasks so far; images are paths, or pixels if they came so."""

    def preprocess(self, example: Example, training: bool) -> Batch:
        return self.llm.preprocess(example, training)

    def collate(self, items: list[Batch]) -> Batch:
        return self.llm.collate(items)

    def learn(self, task: Task, runtime: Runtime) -> None:
        if len(task.train) == 0:
            return
        self.adapters.start(runtime)
        train = Examples.of([*task.train, *self.kept]) if self.kept else task.train
        parameters = self.adapters.parameters()
        tune(self.llm, parameters, train, self.loss, self.config.tuning, runtime=runtime)
        self.adapters.save_task(task, runtime)
        chosen = runtime.permutation(len(task.train), "kept")[: self.config.per_task].sort().values
        self.kept = [*self.kept, *task.train.select(chosen.tolist())]
        self.adapters.merge()

    def loss(self, batch: Batch) -> Tensor:
        return self.llm.answer_loss(batch, mean=self.config.tuning.mean)

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
        return {
            "weights": self.adapters.weights(),
            "stacked": self.adapters.stacked(),
            "projector": self.llm.projector_state(),
            "kept": kept_examples.pack(self.kept),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.adapters.load(state["weights"], state.get("stacked", {}))
        self.llm.load_projector(state["projector"])
        self.kept = kept_examples.unpack(state["kept"])
