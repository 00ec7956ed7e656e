"""O-LoRA: each task's update lies in a subspace of its own, orthogonal to those of earlier tasks.

Wang et al., Orthogonal Subspace Learning for Language Model Continual Learning, 2023 (arXiv 2310.14152).
The penalty is ``sum_s sum |A_t A_s^T|`` in each matrix. Earlier updates stay added to the weights; of them only
the A factors are kept.
Needs: 24 GB GPU memory for 7 B parameters, 1.3 GB more for each task (rank 128, half precision).

Knows low-rank updates. Does not know data sets or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
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
    """Settings of O-LoRA."""

    tuning: Tuning = Tuning()
    """How one task is learned."""
    weight: Annotated[float, Field(ge=0)] = 0.5
    """Of the orthogonality penalty (lambda 1); MCITlib takes 0.05."""
    norm_weight: Annotated[float, Field(ge=0)] = 0.0
    """Of the Frobenius norms of the present factors (lambda 2)."""


class Olora:
    """A language model with merged updates, and the A factors of all of them."""

    Config = Config
    answers = frozenset({"instruct"})
    not_merged = "its penalty keeps later updates off the whole earlier ones"

    def __init__(self, config: Config, *, llm: LanguageModel) -> None:
        self.config, self.llm = config, llm
        self.adapters = Adapters(llm, config.tuning)
        self.past: dict[str, Tensor] = {}
        """A factors of earlier tasks by matrix, ``[tasks * rank, inputs]``."""

    def preprocess(self, example: Example, training: bool) -> Batch:
        return self.llm.preprocess(example, training)

    def collate(self, items: list[Batch]) -> Batch:
        return self.llm.collate(items)

    def learn(self, task: Task, runtime: Runtime) -> None:
        if len(task.train) == 0:
            return
        self.adapters.start(runtime)
        self.past = {name: a.to(runtime.device) for name, a in self.past.items()}
        parameters = self.adapters.parameters()
        tune(self.llm, parameters, task.train, self.loss, self.config.tuning, runtime=runtime)
        self.adapters.save_task(task, runtime)
        self.past = {
            name: torch.cat([self.past.get(name, m.a[:0]), m.a.detach()]) for name, m in self.adapters.matrices.items()
        }
        self.adapters.merge()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the answers plus both penalties."""
        answers = self.llm.answer_loss(batch, mean=self.config.tuning.mean)
        total, values = answers, {"answers": answers}
        matrices = self.adapters.matrices
        if self.past:
            overlaps = [overlap(m.a, self.past[name]) for name, m in matrices.items()]
            values["overlap"] = torch.stack(overlaps).sum()
            total = total + self.config.weight * values["overlap"]
        if self.config.norm_weight:
            norms = [m.a.norm() + m.b.norm() for m in matrices.values()]
            total = total + self.config.norm_weight * torch.stack(norms).sum()
        return {"loss": total, **values}

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
            "past": self.past,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.adapters.load(state["weights"], state.get("stacked", {}))
        self.llm.load_projector(state["projector"])
        self.past = dict(state["past"])


def overlap(a: Float[Tensor, "rank inputs"], past: Float[Tensor, "past_rank inputs"]) -> Float[Tensor, ""]:
    """Sum of ``|A_t A_s^T|`` over all entries and earlier tasks; 0 for orthogonal rows."""
    return (a @ past.T).abs().sum()
