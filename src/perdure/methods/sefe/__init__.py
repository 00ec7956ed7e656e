"""SEFE: low-rank updates merged after each task, kept small where earlier updates were large (RegLoRA).

Chen et al., SEFE: Superficial and Essential Forgetting Eliminator for Multimodal Continual Instruction Tuning,
2025 (arXiv 2505.02486). Its other half, answer-style diversification, is a matter of the data: name a file of
`perdure prepare asd` as the stream's training file. `regularize: false` gives plain low-rank tuning.
Needs: 24 GB GPU memory for 7 B parameters, 1.7 GB more for each task (rank 128, half precision).

Knows the updates' key elements and their penalty. Does not know data sets or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from perdure.errors import CheckpointError
from perdure.families.instruction.adapters import Adapters
from perdure.families.instruction.export import export
from perdure.families.instruction.settings import Tuning
from perdure.families.instruction.tuning import tune
from perdure.methods.sefe.key_elements import Elements, key_elements, mean_magnitude
from perdure.models.language_model import LanguageModel
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of SEFE."""

    tuning: Tuning = Tuning()
    """How one task is learned."""
    regularize: bool = True
    """RegLoRA on or off."""
    weight: Annotated[float, Field(ge=0)] = 2.5e3
    """Of the penalty (lambda)."""
    fraction: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of each matrix's elements that a task marks (M)."""
    multiplicity: Literal["count", "union"] = "count"
    """An element that several tasks mark weighs as often (the code) or once (the paper's mask)."""
    matrices: Annotated[int, Field(gt=0)] | None = None
    """Divisor of the sum over matrices; none: their number. The published code has 224, that of a 7 B Llama."""
    element_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which updates are ranked; the published runs used bfloat16."""
    merge_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type in which an update is added to its weight; the published script used float16. Another than float32 merges
    into half-precision weights too (`tuning.past`)."""

    def faults(self):
        if self.merge_dtype != "float32" and self.tuning.past == "stacked":
            yield "merge_dtype", "nothing is merged with tuning.past=stacked"


class Sefe:
    """A language model with merged updates, and the key elements of the tasks so far."""

    Config = Config
    answers = frozenset({"instruct"})
    not_merged = "its key elements are those of the whole update"

    def __init__(self, config: Config, *, llm: LanguageModel) -> None:
        self.config, self.llm = config, llm
        rounds = config.merge_dtype != "float32" and config.tuning.past == "auto"  # as the published script does
        self.adapters = Adapters(llm, replace(config.tuning, past="merged") if rounds else config.tuning)
        self.elements: dict[str, Elements] = {}
        """Of all tasks learned, by matrix."""
        self._shared: tuple[tuple[int, ...], Tensor, tuple[Tensor, ...]] | None = None
        """The factors' versions, and the penalty and its gradients there."""

    def preprocess(self, example: Example, training: bool) -> Batch:
        return self.llm.preprocess(example, training)

    def collate(self, items: list[Batch]) -> Batch:
        return self.llm.collate(items)

    def learn(self, task: Task, runtime: Runtime) -> None:
        if len(task.train) == 0:
            return
        self.adapters.start(runtime)
        self.elements = {name: e.to(runtime.device) for name, e in self.elements.items()}
        tune(
            self.llm,
            self.adapters.parameters(),
            task.train,
            self.loss,
            self.config.tuning,
            runtime=runtime,
        )
        self._shared = None
        self.adapters.save_task(task, runtime)
        if self.config.regularize:
            self.elements = self._with_new_elements()
        self.adapters.merge(dtype=getattr(torch, self.config.merge_dtype))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the answers plus the weighted penalty."""
        answers = self.llm.answer_loss(batch, mean=self.config.tuning.mean)
        if not (self.config.regularize and self.elements and self.config.weight):
            return {"loss": answers}
        penalty = self.penalty()
        return {"loss": answers + self.config.weight * penalty, "answers": answers, "penalty": penalty}

    def penalty(self) -> Tensor:
        """Mean magnitude of the present update at the key elements, averaged over matrices (L_reg).

        Where batches are accumulated, it is made once a step: the microbatches share its value and gradient.
        """
        if self.config.tuning.accumulate == 1:
            return self._penalty()
        factors = list(self.adapters.parameters().values())
        versions = tuple(p._version for p in factors)
        if self._shared is None or self._shared[0] != versions:
            value = self._penalty()
            self._shared = (versions, value.detach(), torch.autograd.grad(value, factors))
        _, value, gradients = self._shared
        return value + sum(((p - p.detach()) * g).sum() for p, g in zip(factors, gradients))

    def _penalty(self) -> Tensor:
        values = [mean_magnitude(m.a, m.b, self.elements[n]) for n, m in self.adapters.matrices.items()]
        return torch.stack(values).sum() / (self.config.matrices or len(values))

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
            "elements": {name: e.state_dict() for name, e in self.elements.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.adapters.load(state["weights"], state.get("stacked", {}))
        self.llm.load_projector(state["projector"])
        self.elements = {name: Elements.from_state(e) for name, e in state["elements"].items()}
        self._check_elements()

    def _with_new_elements(self) -> dict[str, Elements]:
        found = {}
        dtype = getattr(torch, self.config.element_dtype)
        for name, m in self.adapters.matrices.items():
            new = key_elements(m.a, m.b, fraction=self.config.fraction, dtype=dtype)
            before = self.elements.get(name)
            multiplicity = self.config.multiplicity
            if before is None:
                found[name] = Elements.of(new, m.shape, multiplicity=multiplicity)
            else:
                found[name] = before.add(new, multiplicity=multiplicity)
        return found

    def _check_elements(self) -> None:
        shapes = {name: m.shape for name, m in self.adapters.matrices.items()}
        for name, elements in self.elements.items():
            if shapes.get(name) != elements.shape:
                raise CheckpointError(
                    f"the key elements of '{name}' are of a matrix {elements.shape}",
                    expected=f"{shapes.get(name, 'no such matrix')} in this model",
                )
        if self.elements and set(self.elements) != set(shapes):
            raise CheckpointError(f"key elements are missing for {sorted(set(shapes) - set(self.elements))[:3]}")
