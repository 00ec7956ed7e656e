"""DER++: replayed logits stay what they were, and replayed images are learned outputs.

Buzzega et al., "Dark Experience for General Continual Learning", NeurIPS 2020 (arXiv 2004.07211). Logits and
labels are replayed on two batches, drawn independently. Needs no task boundaries.
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
    """Settings of DER++."""

    alpha: Annotated[float, Field(ge=0)] = 0.2
    """Weight of the replayed logits (mean squared error)."""
    beta: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the cross-entropy on replayed images."""


class Derpp:
    """One network and a reservoir of images, labels and the logits that they had when stored."""

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
            self.memory.add({"image": images, "label": labels, "logits": logits}, self.draws)
            return values

        data = rehearsal.read(task, self.net, runtime, stored=self.memory.columns, grows=True)
        self.memory.widen("logits", cast(Any, self.net).classes)
        rehearsal.learn(loss, data, self.net, self.config, runtime=runtime, keep={"memory": self.memory})

    def losses(self, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The loss with its unweighted terms, and the current images' logits."""
        c = self.config
        logits = self.net(self._view(images))
        values = {"cross_entropy": F.cross_entropy(logits, labels)}
        total = values["cross_entropy"]
        logit_replay = self.memory.draw(c.minibatch_size, self.draws)
        if logit_replay is not None:
            outputs = self.net(self._view(logit_replay["image"]))
            values["replayed_logits"] = heads.squared_error(outputs, logit_replay["logits"])
            label_replay = self.memory.draw(c.minibatch_size, self.draws)
            assert label_replay is not None
            outputs = self.net(self._view(label_replay["image"]))
            values["replayed_cross_entropy"] = F.cross_entropy(outputs, label_replay["label"].to(outputs.device))
            total = total + c.alpha * values["replayed_logits"] + c.beta * values["replayed_cross_entropy"]
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
