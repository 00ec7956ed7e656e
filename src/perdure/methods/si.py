"""Synaptic intelligence: each parameter's part in lowering the loss decides how firmly it is held.

Zenke et al., "Continual Learning Through Synaptic Intelligence", ICML 2017 (arXiv 1703.04200). Importance is
collected along the path of training, so no pass over the data is needed at a task's end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families import rehearsal
from perdure.families.rehearsal import gradients, settings
from perdure.families.rehearsal.buffer import Draws
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.StepDescent):
    """Settings of synaptic intelligence."""

    c: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the penalty."""
    xi: Annotated[float, Field(gt=0)] = 1.0
    """Damping of the importance of parameters that hardly moved."""
    clip_value: Annotated[float, Field(gt=0)] = 1.0
    """Largest absolute value of a gradient's entry, after the penalty's gradient is added."""


class Si:
    """One network and three vectors over all its parameters."""

    Config = Config
    answers = frozenset({"classify"})
    not_merged = "it holds the weights that were learned, not merged ones"
    scores_are = "logits"

    def __init__(self, config: Config, *, net: nn.Module) -> None:
        self.config, self.net = config, net
        self.draws = Draws()
        start = gradients.vector(list(net.parameters()))
        self.path = {
            "importance": torch.zeros_like(start),  # omega of past tasks
            "gain": torch.zeros_like(start),  # path integral of the present task
            "anchor": start,  # parameters after the last task
        }

    preprocess = staticmethod(rehearsal.preprocess)

    def learn(self, task: Task, runtime: Runtime) -> None:
        c = self.config
        optimizer = rehearsal.sgd(self.net, c.lr)
        parameters = list(self.net.parameters())
        self.path = {name: value.to(runtime.device) for name, value in self.path.items()}
        path = self.path

        def step(images: Tensor, labels: Tensor, at: rehearsal.At) -> Mapping[str, Tensor]:
            rehearsal.enter_training(self.net)
            rehearsal.set_lr(optimizer, c.lr, c.milestones, at.epoch)
            logits = self.net(rehearsal.augmented(images, c.augment, self.draws, self.net))
            loss = F.cross_entropy(logits, labels)
            g = gradients.gradient(loss, parameters)
            before = gradients.vector(parameters)
            penalty = 2 * c.c * path["importance"] * (before - path["anchor"])
            held = (g + penalty).clamp(-c.clip_value, c.clip_value)
            rehearsal.descend_along(held, loss, optimizer, parameters)
            path["gain"] += g * (before - gradients.vector(parameters))
            return {"loss": loss.detach()}

        rehearsal.train(
            step,
            rehearsal.read(task, self.net, runtime),
            epochs=c.epochs,
            batch_size=c.batch_size,
            runtime=runtime,
            stage="train",
            state={"net": self.net, "path": path},
        )
        now = gradients.vector(parameters)
        moved = (now - path["anchor"]) ** 2
        self.path = {
            "importance": path["importance"] + path["gain"] / (moved + c.xi),
            "gain": torch.zeros_like(now),
            "anchor": now,
        }

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        return rehearsal.predictor(self.net, query)

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "path": dict(self.path)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.path = {name: value.clone() for name, value in state["path"].items()}
