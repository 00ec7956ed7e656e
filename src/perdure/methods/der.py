"""Dark experience replay: the network's logits on past images stay what they were.

Buzzega et al., "Dark Experience for General Continual Learning", NeurIPS 2020 (arXiv 2004.07211).
Needs no task boundaries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families import rehearsal
from perdure.families.rehearsal import heads, settings
from perdure.families.rehearsal.buffer import Draws, Memory
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Replay, settings.StepDescent):
    """Settings of dark experience replay."""

    alpha: Annotated[float, Field(ge=0)] = 0.3
    """Weight of the replayed logits (mean squared error)."""


class Der:
    """One network and a reservoir of images and the logits that they had when stored."""

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
            values, logits = self.losses(images, labels)
            self.memory.add({"image": images, "logits": logits}, self.draws)
            return values

        data = rehearsal.read(task, self.net, runtime, stored=self.memory.columns, grows=True)
        self.memory.widen("logits", cast(Any, self.net).classes)
        rehearsal.learn(loss, data, self.net, self.config, runtime=runtime, keep={"memory": self.memory})

    def losses(self, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The loss with its unweighted terms, and the current images' logits."""
        logits = self.net(self._view(images))
        values = {"cross_entropy": F.cross_entropy(logits, labels)}
        total = values["cross_entropy"]
        replay = self.memory.draw(self.config.minibatch_size, self.draws)
        if replay is not None:
            again = self.net(self._view(replay["image"]))
            values["replayed_logits"] = heads.squared_error(again, replay["logits"])
            total = total + self.config.alpha * values["replayed_logits"]
        return {"loss": total, **values}, logits.detach()

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        return rehearsal.predictor(self.net, query)

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        heads.load(self.net, state["net"])
        self.memory.load_state_dict(state["memory"])

    def _view(self, images: Tensor) -> Tensor:
        return rehearsal.augmented(images, self.config.augment, self.draws, self.net)
