"""Elastic weight consolidation of one low-rank update that is trained throughout.

Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017 (arXiv 1612.00796), on the factors and
the projector of a language model, as in CoIN's comparison. Importances of all tasks are added up.
Needs: 28 GB GPU memory for 7 B parameters.

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
from perdure.loading import ExampleBatches
from perdure.models.language_model import LanguageModel
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of elastic weight consolidation."""

    tuning: Tuning = Tuning()
    """How one task is learned."""
    weight: Annotated[float, Field(ge=0)] = 1e3
    """Of the penalty ``1/2 sum F (theta - theta*)^2``."""
    importance_examples: Annotated[int, Field(ge=1)] = 256
    """Conversations of a task, one gradient each, whose squares are averaged to its importances."""


class LoraEwc:
    """One update that goes on, where it stood after the last task, and how much each number matters."""

    Config = Config
    answers = frozenset({"instruct"})
    not_merged = "it holds the weights that were learned, not merged ones"

    def __init__(self, config: Config, *, llm: LanguageModel) -> None:
        self.config, self.llm = config, llm
        self.adapters = Adapters(llm, config.tuning)
        self.importance: dict[str, Tensor] = {}
        """Sum over tasks of mean squared gradients, by parameter."""
        self.anchor: dict[str, Tensor] = {}
        """Values after the last task."""

    def preprocess(self, example: Example, training: bool) -> Batch:
        return self.llm.preprocess(example, training)

    def collate(self, items: list[Batch]) -> Batch:
        return self.llm.collate(items)

    def learn(self, task: Task, runtime: Runtime) -> None:
        if len(task.train) == 0:
            return
        if self.anchor:
            self.adapters.enable(True)
        else:
            self.adapters.start(runtime)
        self.importance = {n: t.to(runtime.device) for n, t in self.importance.items()}
        self.anchor = {n: t.to(runtime.device) for n, t in self.anchor.items()}
        parameters = self.adapters.parameters()
        tune(self.llm, parameters, task.train, self.loss, self.config.tuning, runtime=runtime)
        self.adapters.save_task(task, runtime)
        new = self._importance(task, runtime)
        self.importance = {n: v + self.importance.get(n, 0) for n, v in new.items()}
        self.anchor = copies(self._trained())
        self.adapters.hold()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the answers plus the weighted penalty."""
        answers = self.llm.answer_loss(batch, mean=self.config.tuning.mean)
        if not self.anchor:
            return {"loss": answers}
        trained = self._trained()
        parts = [(self.importance[n] * (p - self.anchor[n]) ** 2).sum() for n, p in trained.items()]
        penalty = torch.stack(parts).sum() / 2
        return {"loss": answers + self.config.weight * penalty, "answers": answers, "penalty": penalty}

    def predictor(self, query: Query):
        return self.llm.answerer(self.config.tuning)

    def export(self, folder: Path) -> str:
        """The model with its update, for plain transformers, and the update as a PEFT folder."""
        return export(self.adapters, folder, self.config.tuning, goes_on=True)

    def state_dict(self) -> dict[str, Any]:
        return {"importance": self.importance, "anchor": self.anchor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.importance, self.anchor = dict(state["importance"]), dict(state["anchor"])
        if not self.anchor:
            return
        factors = {n: t for n, t in self.anchor.items() if not n.startswith("projector.")}
        self.adapters.load_factors(factors)
        names = self.llm.projector_parameters()
        self.llm.load_projector({n: self.anchor[f"projector.{n}"] for n in names})

    def _trained(self) -> dict[str, Tensor]:
        own = {f"projector.{n}": p for n, p in self.llm.projector_parameters().items()}
        return {**self.adapters.parameters(), **own}

    def _importance(self, task: Task, runtime: Runtime) -> dict[str, Tensor]:
        """Mean squared gradients of the answers' loss, one conversation at a time."""
        chosen = runtime.permutation(len(task.train), "importance")[: self.config.importance_examples]
        batches = ExampleBatches(
            task.train.select(chosen.tolist()),
            self.preprocess,
            batch_size=1,
            runtime=runtime,
            stage="importance",
            training=True,
            shuffle=False,
            collate=self.collate,
        )
        trained = self._trained()
        for parameter in trained.values():
            parameter.requires_grad_(True)
        sums = {n: torch.zeros_like(p) for n, p in trained.items()}
        count = 0
        for batch, _ in batches.epoch(0):
            if batch is None:
                continue
            with runtime.autocast():
                loss = self.llm.answer_loss(batch)
            grads = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            for total, grad in zip(sums.values(), grads):
                if grad is not None:
                    total += grad**2
            count += 1
        self.llm.projector.requires_grad_(False)
        return _mean_over_processes(sums, count, runtime)


def _mean_over_processes(sums: dict[str, Tensor], count: int, runtime: Runtime) -> dict[str, Tensor]:
    if runtime.processes > 1:
        for total in sums.values():
            torch.distributed.all_reduce(total)
        count = sum(runtime.gather([count]))
    return {name: total / max(count, 1) for name, total in sums.items()}
