"""Sequential training by SGD, with no memory of earlier tasks: the lower bound.

Knows cross-entropy on the current batch, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families import rehearsal
from perdure.families.rehearsal import heads, settings
from perdure.families.rehearsal.buffer import Draws
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.StepDescent):
    """Settings of sequential SGD."""


class Sgd:
    """One network, trained on each task in turn."""

    Config = Config
    answers = frozenset({"classify"})
    head_grows = frozenset({"net"})
    scores_are = "logits"

    def __init__(self, config: Config, *, net: nn.Module) -> None:
        self.config, self.net = config, net
        self.draws = Draws()

    preprocess = staticmethod(rehearsal.preprocess)
    merged = rehearsal.whole_network

    def learn(self, task: Task, runtime: Runtime) -> None:
        def loss(images: Tensor, labels: Tensor, at: rehearsal.At) -> Mapping[str, Tensor]:
            x = rehearsal.augmented(images, self.config.augment, self.draws, self.net)
            return {"loss": F.cross_entropy(self.net(x), labels)}

        data = rehearsal.read(task, self.net, runtime, grows=True)
        rehearsal.learn(loss, data, self.net, self.config, runtime=runtime)

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        return rehearsal.predictor(self.net, query)

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        heads.load(self.net, state["net"])
