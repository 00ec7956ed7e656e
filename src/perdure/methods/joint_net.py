"""Joint training of a network from scratch on all tasks seen so far: the upper bound.

Keeps every image. Each task starts again from the initial weights; over a stream without tasks it is one
shuffled pass (use ``lr: 0.1, batch_size: 4``).
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
from perdure.families.rehearsal import settings
from perdure.families.rehearsal.buffer import Draws
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.StepDescent):
    """Settings of joint training."""

    from_task: Annotated[int, Field(ge=1)] = 1
    """Train only from this task on (counted from 1): the number of tasks trains once, at the end."""


class JointNet:
    """One network, its initial weights, and all images so far."""

    Config = Config
    answers = frozenset({"classify"})
    scores_are = "logits"

    def __init__(self, config: Config, *, net: nn.Module) -> None:
        self.config, self.net = config, net
        self.draws = Draws()
        self.initial = rehearsal.network_state(net)
        self.stored: dict[str, Tensor] = {}
        """``image`` and ``label`` of all tasks learned."""
        self.tasks = 0
        """Tasks learned."""

    preprocess = staticmethod(rehearsal.preprocess)

    def learn(self, task: Task, runtime: Runtime) -> None:
        c = self.config
        data = rehearsal.read(task, self.net, runtime, stored=self.stored)
        columns = {"image": data.images, "label": data.labels}
        if self.stored:
            old = {name: self.stored[name].to(column.device) for name, column in columns.items()}
            columns = {name: torch.cat([old[name], column]) for name, column in columns.items()}
        if self.tasks + 1 >= c.from_task:
            self._train(rehearsal.Images(images=columns["image"], labels=columns["label"]), runtime)
        self.stored = columns
        self.tasks += 1

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        return rehearsal.predictor(self.net, query)

    def state_dict(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "initial": dict(self.initial),
            "stored": dict(self.stored),
            "tasks": self.tasks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.initial, self.stored = dict(state["initial"]), dict(state["stored"])
        self.tasks = int(state["tasks"])

    def _train(self, data: rehearsal.Images, runtime: Runtime) -> None:
        def loss(images: Tensor, labels: Tensor, at: rehearsal.At) -> Mapping[str, Tensor]:
            x = rehearsal.augmented(images, self.config.augment, self.draws, self.net)
            return {"loss": F.cross_entropy(self.net(x), labels)}

        self.net.load_state_dict(self.initial)
        rehearsal.learn(loss, data, self.net, self.config, runtime=runtime)
