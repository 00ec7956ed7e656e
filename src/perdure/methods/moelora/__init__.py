"""MoELoRA: low-rank experts that every token mixes by a learned router, trained throughout all tasks.

Chen et al., CoIN: A Benchmark of Continual Instruction Tuning for Multimodal Large Language Models, 2024
(arXiv 2403.08350).
Needs: 28 GB GPU memory for 7 B parameters.

Knows the experts' settings. Does not know data sets or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from perdure.families.instruction.adapters import replace_linear
from perdure.families.instruction.settings import Tuning
from perdure.families.instruction.tuning import tune
from perdure.methods.moelora.mixture import MixtureLinear
from perdure.models.language_model import LanguageModel
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of MoELoRA."""

    tuning: Tuning = Tuning()
    """How one task is learned; `rank` is that of all experts together."""
    experts: Annotated[int, Field(ge=1)] = 8
    """Experts on every linear layer."""
    start_std: Annotated[float, Field(ge=0)] = 0.01
    """Standard deviation of A at the start; B starts at 0."""

    def faults(self):
        if self.tuning.rank % self.experts:
            yield "experts", f"rank {self.tuning.rank} cannot be shared by {self.experts} experts"


class Moelora:
    """A language model whose decoder's linear layers carry mixtures."""

    Config = Config
    answers = frozenset({"instruct"})
    not_merged = "its experts and their router belong together"

    def __init__(self, config: Config, *, llm: LanguageModel) -> None:
        self.config, self.llm = config, llm
        tuning = config.tuning
        llm.prepare(max_length=tuning.max_length, projector=tuning.projector_lr != 0)
        shape = {"experts": config.experts, "rank": tuning.rank, "alpha": tuning.alpha, "dropout": tuning.dropout}
        self.layers = replace_linear(llm, lambda base: MixtureLinear(base, **shape))
        """Mixtures by name in the language model."""
        self.begun = False
        """Whether the experts have been trained."""

    def preprocess(self, example: Example, training: bool) -> Batch:
        return self.llm.preprocess(example, training)

    def collate(self, items: list[Batch]) -> Batch:
        return self.llm.collate(items)

    def learn(self, task: Task, runtime: Runtime) -> None:
        if len(task.train) == 0:
            return
        if not self.begun:
            self._start(runtime)
        parameters = self.parameters()
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        tune(self.llm, parameters, task.train, self.loss, self.config.tuning, runtime=runtime)
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        self.begun = True

    def loss(self, batch: Batch) -> Tensor:
        return self.llm.answer_loss(batch, mean=self.config.tuning.mean)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Routers and factors by name."""
        names = ("router", "a", "b")
        return {f"{n}.{which}": getattr(m, which) for n, m in self.layers.items() for which in names}

    def predictor(self, query: Query):
        return self.llm.answerer(self.config.tuning)

    def export(self, folder: Path) -> str:
        """Experts, routers and projector in one safetensors file: no other library has these layers."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "moelora.safetensors"
        tensors = {**self.parameters(), **{f"projector.{n}": t for n, t in self.llm.projector_state().items()}}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
        return f'from safetensors.torch import load_file\ntensors = load_file("{file}")  # router, a, b of each layer\n'

    def state_dict(self) -> dict[str, Any]:
        projector = self.llm.projector_state()
        return {"experts": self.parameters() if self.begun else {}, "projector": projector, "begun": self.begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.begun = state["begun"]
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                if self.begun:
                    parameter.copy_(state["experts"][name])
        self.llm.load_projector(state["projector"])

    @torch.no_grad()
    def _start(self, runtime: Runtime) -> None:
        """Random A and router, B zero."""
        for name, layer in self.layers.items():
            layer.a.copy_(runtime.normal(tuple(layer.a.shape), "expert", name) * self.config.start_std)
            bound = layer.router.shape[1] ** -0.5
            uniform = torch.rand(layer.router.shape, generator=runtime.generator("router", name))
            layer.router.copy_((2 * uniform - 1) * bound)
            layer.b.zero_()
