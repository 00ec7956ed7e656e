"""The plain network beside Dynamos: class logits and labels are replayed on one batch, nothing is gated.

As `multi_scale` of the Dynamos code: DER++ with a single draw for both terms, and only images that were
predicted right are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families import rehearsal
from perdure.families.rehearsal import settings
from perdure.families.rehearsal.buffer import Draws, Memory
from perdure.families.rehearsal.policy import is_correct
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Replay, settings.StepDescent):
    """Settings of multi_scale."""

    lr: Annotated[float, Field(gt=0)] = 0.07
    alpha: Annotated[float, Field(ge=0)] = 0.2
    """Weight of the replayed logits (mean squared error)."""
    beta: Annotated[float, Field(ge=0)] = 2.0
    """Weight of the cross-entropy on replayed images."""


class MultiScale:
    """One plain network and a reservoir of images, labels and logits."""

    Config = Config
    answers = frozenset({"classify"})
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
            columns = {"image": images, "label": labels, "logits": logits}
            self.memory.add(columns, self.draws, among=is_correct(logits, labels))
            return values

        data = rehearsal.read(task, self.net, runtime, stored=self.memory.columns)
        rehearsal.learn(loss, data, self.net, self.config, runtime=runtime, keep={"memory": self.memory})

    def losses(self, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The loss with its unweighted terms, and the current images' logits."""
        c = self.config
        logits = self.net(self._view(images))
        values = {"cross_entropy": F.cross_entropy(logits, labels)}
        total = values["cross_entropy"]
        replay = self.memory.draw(c.minibatch_size, self.draws)
        if replay is not None:
            again = self.net(self._view(replay["image"]))
            values["replayed_logits"] = F.mse_loss(again, replay["logits"].to(again))
            values["replayed_cross_entropy"] = F.cross_entropy(again, replay["label"].to(again.device))
            total = total + c.alpha * values["replayed_logits"] + c.beta * values["replayed_cross_entropy"]
        return {"loss": total, **values}, logits.detach()

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        return rehearsal.predictor(self.net, query)

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.memory.load_state_dict(state["memory"])

    def _view(self, images: Tensor) -> Tensor:
        return rehearsal.augmented(images, self.config.augment, self.draws, self.net)
