"""Learning without forgetting, for a network trained from scratch: old outputs on new images are kept.

Li and Hoiem 2016 (arXiv 1606.09282), in the form of the rehearsal literature: before a later task the head's
new outputs are trained alone, then the network's logits on the task's images are recorded and distilled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families import rehearsal
from perdure.families.rehearsal import settings
from perdure.families.rehearsal.buffer import Draws
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.StepDescent):
    """Settings of learning without forgetting."""

    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the distillation."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Probabilities are taken to the power 1/temperature before they are compared."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of SGD."""


class LwfNet:
    """One network; nothing of past tasks is stored."""

    Config = Config
    answers = frozenset({"classify"})
    scores_are = "logits"

    def __init__(self, config: Config, *, net: nn.Module) -> None:
        self.config, self.net = config, net
        self.draws = Draws()
        self.past = 0
        """Classes of the tasks learned."""

    preprocess = staticmethod(rehearsal.preprocess)
    merged = rehearsal.whole_network

    def learn(self, task: Task, runtime: Runtime) -> None:
        c = self.config
        data = rehearsal.read(task, self.net, runtime)
        past, seen = self.past, max(self.past, task.offset + len(task.candidates))
        old = None
        if past:
            if bool((data.labels >= past).all()):  # else old classes come again, and no output is new
                self._train_new_outputs(data, past, seen, runtime)
            old = self._logits(data)

        def loss(images: Tensor, labels: Tensor, at: rehearsal.At) -> Mapping[str, Tensor]:
            old_outputs = None if old is None else old[at.index]
            return self.losses(images, labels, old_outputs, past=past, seen=seen)

        optimizer = torch.optim.SGD(self.net.parameters(), lr=c.lr, weight_decay=c.weight_decay)
        rehearsal.learn(loss, data, self.net, c, runtime=runtime, optimizer=optimizer)
        self.past = seen

    def losses(self, images: Tensor, labels: Tensor, old: Tensor | None, *, past: int, seen: int) -> dict[str, Tensor]:
        """The loss with its terms; `old` are the recorded logits ``[images, classes]``."""
        logits = self.net(rehearsal.augmented(images, self.config.augment, self.draws, self.net))
        values = {"cross_entropy": F.cross_entropy(logits[:, :seen], labels)}
        if old is None:
            return {"loss": values["cross_entropy"], **values}
        values["distillation"] = softened_cross_entropy(
            old[:, :past].softmax(dim=1), logits[:, :past].softmax(dim=1), self.config.temperature
        )
        return {"loss": values["cross_entropy"] + self.config.alpha * values["distillation"], **values}

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        return rehearsal.predictor(self.net, query)

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "past": self.past}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.past = int(state["past"])

    def _train_new_outputs(self, data: rehearsal.Images, past: int, seen: int, runtime: Runtime) -> None:
        """SGD on the head's outputs for the new classes, over fixed features in evaluation mode."""
        c, head = self.config, self.net.get_submodule("head")
        self.net.eval()
        with torch.no_grad():
            make = cast(Any, self.net).features
            features = torch.cat([make(self._input(part)) for part in data.images.split(256)])
        optimizer = torch.optim.SGD(head.parameters(), lr=c.lr)

        def step(chosen: Tensor, labels: Tensor, at: rehearsal.At) -> Mapping[str, Tensor]:
            loss = F.cross_entropy(head(chosen)[:, past:seen], labels - past)
            rehearsal.descend(loss, optimizer, runtime)
            return {"loss": loss}

        rehearsal.train(
            step,
            rehearsal.Images(images=features, labels=data.labels, cuts=data.cuts),
            epochs=c.epochs,
            batch_size=c.batch_size,
            runtime=runtime,
            stage="head",
            state={"head": head},
        )

    @torch.no_grad()
    def _logits(self, data: rehearsal.Images) -> Tensor:
        self.net.eval()
        return torch.cat([self.net(self._input(part)) for part in data.images.split(256)])

    def _input(self, images: Tensor) -> Tensor:
        return rehearsal.network_input(images, self.net)


def softened_cross_entropy(old: Tensor, new: Tensor, temperature: float) -> Tensor:
    """``-mean_i sum_c q log s`` of probabilities ``[images, classes]`` to the power 1/temperature, renormalized."""

    def soften(p: Tensor) -> Tensor:
        powered = p ** (1 / temperature)
        return powered / powered.sum(dim=1, keepdim=True)

    return -(soften(old) * soften(new).log()).sum(dim=1).mean()
