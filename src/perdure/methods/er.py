"""Experience replay: cross-entropy on the current batch and on a batch from memory, in one pass.

Ratcliff 1990; Robins 1995; in this form Buzzega et al. 2020 (arXiv 2004.07211). Needs no task boundaries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families import rehearsal
from perdure.families.rehearsal import heads, settings
from perdure.families.rehearsal.buffer import Draws, Memory
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Replay, settings.StepDescent):
    """Settings of experience replay."""


class Er:
    """One network and a reservoir of images and labels."""

    Config = Config
    answers = frozenset({"classify"})
    head_grows = frozenset({"net"})
    scores_are = "logits"

    def __init__(self, config: Config, *, net: nn.Module) -> None:
        self.config, self.net = config, net
        self.memory = Memory(config.buffer_size)
        self.draws = Draws()

    preprocess = staticmethod(rehearsal.preprocess)
    merged = rehearsal.whole_network

    def learn(self, task: Task, runtime: Runtime) -> None:
        def loss(images: Tensor, labels: Tensor, at: rehearsal.At) -> Mapping[str, Tensor]:
            values = self.losses(images, labels)
            self.memory.add({"image": images, "label": labels}, self.draws)
            return values

        data = rehearsal.read(task, self.net, runtime, stored=self.memory.columns, grows=True)
        rehearsal.learn(loss, data, self.net, self.config, runtime=runtime, keep={"memory": self.memory})

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss. Batch norm sees current and replayed images together."""
        x, y = self._view(images), labels
        replay = self.memory.draw(self.config.minibatch_size, self.draws)
        if replay is not None:
            x = torch.cat([x, self._view(replay["image"])])
            y = torch.cat([y, replay["label"].to(y.device)])
        return {"loss": F.cross_entropy(self.net(x), y)}

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        return rehearsal.predictor(self.net, query)

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        heads.load(self.net, state["net"])
        self.memory.load_state_dict(state["memory"])

    def _view(self, images: Tensor) -> Tensor:
        return rehearsal.augmented(images, self.config.augment, self.draws, self.net)
