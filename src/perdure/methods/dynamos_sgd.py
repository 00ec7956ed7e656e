"""Dynamos without replay: gates, their reward and their prototypes, trained on each task in turn.

The ablation of the Dynamos code: it shows what gating alone keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from perdure.families import rehearsal
from perdure.families.rehearsal import modularity, policy, settings
from perdure.families.rehearsal.buffer import Draws
from perdure.layers import gates
from perdure.layers.resnet import ResNet
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task

MEASURED = 500
"""Images of a task over which the gates are looked at when it is learned; nothing of them is kept."""


@dataclass(frozen=True, kw_only=True)
class Config(settings.Descent):
    """Settings of Dynamos without replay."""

    lr: Annotated[float, Field(gt=0)] = 0.07
    policy_penalty: Annotated[float, Field(le=0)] = -500.0
    """The reward of an image that is predicted wrong is multiplied by minus this."""
    reward_weight: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the policy loss."""
    prototype_weight: Annotated[float, Field(ge=0)] = 0.3
    """Weight of the prototype loss."""
    keep_ratio: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Share of channels that a gate should keep."""
    warmup: Annotated[int, Field(ge=0)] = 10
    """Steps (epochs, if there are several) of the first task in which gates are bypassed; at the latest it
    ends with the first task. 0 for none."""
    threshold: Annotated[float, Field(ge=0)] = 0.5
    """Least keep probability of a kept channel in evaluation."""


class DynamosSgd:
    """One gated network."""

    Config = Config
    answers = frozenset({"classify"})
    scores_are = "logits"

    def __init__(self, config: Config, *, net: ResNet) -> None:
        gates.require_gates(net)
        self.config, self.net = config, net
        self.draws = Draws()
        self.tasks = 0
        """Tasks learned."""

    preprocess = staticmethod(rehearsal.preprocess)

    def learn(self, task: Task, runtime: Runtime) -> None:
        data = rehearsal.read(task, self.net, runtime)
        optimizer = rehearsal.sgd(self.net, self.config.lr)

        def step(images: Tensor, labels: Tensor, at: rehearsal.At) -> Mapping[str, Tensor]:
            rehearsal.enter_training(self.net)
            with runtime.autocast():
                values = self.losses(images, labels, at)
            rehearsal.descend(values["loss"], optimizer, runtime)
            return values

        rehearsal.train(
            step,
            data,
            epochs=self.config.epochs,
            batch_size=self.config.batch_size,
            runtime=runtime,
            stage="train",
            state={"net": self.net},
        )
        self.tasks += 1
        chosen = runtime.permutation(len(data.labels), "modularity")[:MEASURED].to(data.labels.device)
        images = rehearsal.network_input(data.images[chosen], self.net)
        found = modularity.measure(self.net, images, data.labels[chosen], threshold=self.config.threshold)
        if found:
            runtime.log("modularity", **found)

    def losses(self, images: Tensor, labels: Tensor, at: rehearsal.At) -> dict[str, Tensor]:
        """The loss with its unweighted terms; cross-entropy of the plain network while warming up."""
        c = self.config
        x = rehearsal.augmented(images, c.augment, self.draws, self.net)
        if self.tasks == 0 and (at.step if c.epochs == 1 else at.epoch) < c.warmup:
            return {"loss": F.cross_entropy(self.net(x), labels)}
        uniforms = self.draws.uniforms(len(x), self.net.boundaries[-1], of="gates").to(x.device, non_blocking=True)
        terms = policy.terms(
            *self.net.gated(x, uniforms=uniforms),
            labels,
            boundaries=self.net.boundaries,
            keep_ratio=c.keep_ratio,
            penalty=c.policy_penalty,
        )
        total = terms.cross_entropy + c.reward_weight * terms.policy + c.prototype_weight * terms.prototype
        return {"loss": total, **terms._asdict()}

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        if self.tasks == 0 and self.config.warmup:
            return rehearsal.predictor(self.net, query)
        net, threshold = self.net.eval(), self.config.threshold
        columns = slice(query.offset, query.offset + len(query.candidates))
        return lambda batch: net.gated(rehearsal.network_input(batch["image"], net), threshold=threshold).logits[
            :, columns
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "tasks": self.tasks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.tasks = int(state["tasks"])
