"""A-GEM with a reservoir: a step must not raise the loss on a batch from memory.

Chaudhry et al., "Efficient Lifelong Learning with A-GEM", ICLR 2019 (arXiv 1812.00420), with the reservoir of
Buzzega et al. 2020, so that it needs no task boundaries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families import rehearsal
from perdure.families.rehearsal import heads, settings
from perdure.families.rehearsal.buffer import Draws, Memory
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Replay, settings.StepDescent):
    """Settings of A-GEM with a reservoir."""


class AgemR:
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
        def gradient(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            found = rehearsal.agreeing_gradient(
                self._loss,
                images,
                labels,
                net=self.net,
                memory=self.memory,
                draws=self.draws,
                count=self.config.minibatch_size,
            )
            self.memory.add({"image": images, "label": labels}, self.draws)
            return found

        data = rehearsal.read(task, self.net, runtime, stored=self.memory.columns, grows=True)
        rehearsal.learn_along(gradient, data, self.net, self.config, runtime=runtime, keep={"memory": self.memory})

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        return rehearsal.predictor(self.net, query)

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        heads.load(self.net, state["net"])
        self.memory.load_state_dict(state["memory"])

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.net(rehearsal.augmented(images, self.config.augment, self.draws, self.net)), labels)
