"""CLS-ER: a fast and a slow EMA teacher supply the targets of replayed images.

Arani et al., "Learning Fast, Learning Slow: A General Continual Learning Method based on Complementary Learning
System", ICLR 2022 (arXiv 2201.12604). Needs no task boundaries. The stable average answers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families import rehearsal
from perdure.families.rehearsal import settings
from perdure.families.rehearsal.buffer import Draws, Memory
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Replay, settings.StepDescent):
    """Settings of CLS-ER."""

    lr: Annotated[float, Field(gt=0)] = 0.1
    reg_weight: Annotated[float, Field(ge=0)] = 0.15
    """Weight of the consistency with the averages, on replayed images."""
    plastic_frequency: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Probability that the plastic EMA teacher is updated after a step."""
    plastic_alpha: Annotated[float, Field(ge=0, le=1)] = 0.999
    """What remains of the plastic EMA teacher in an update."""
    stable_frequency: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Probability that the stable average is updated after a step."""
    stable_alpha: Annotated[float, Field(ge=0, le=1)] = 0.999
    """What remains of the stable average in an update."""
    inference: Literal["stable", "plastic", "working"] = "stable"
    """Which network answers."""


class ClsEr:
    """A working network, its plastic and stable EMA teachers, and a reservoir of images and labels."""

    Config = Config
    answers = frozenset({"classify"})
    not_merged = "its averages have weights of their own"
    scores_are = "logits"

    def __init__(self, config: Config, *, net: nn.Module) -> None:
        self.config, self.net = config, net
        # Batch norm's statistics are each network's own: the averages run in training mode on replayed images.
        self.plastic = copy.deepcopy(net)
        self.stable = copy.deepcopy(net)
        self.memory = Memory(config.buffer_size)
        self.draws = Draws()
        self.steps = torch.tensor(0)
        """Training steps so far."""

    preprocess = staticmethod(rehearsal.preprocess)

    def learn(self, task: Task, runtime: Runtime) -> None:
        def loss(images: Tensor, labels: Tensor, at: rehearsal.At) -> Mapping[str, Tensor]:
            for net in (self.plastic, self.stable):
                rehearsal.enter_training(net)
            values = self.losses(images, labels)
            self.memory.add({"image": images, "label": labels}, self.draws)
            return values

        rehearsal.learn(
            loss,
            rehearsal.read(task, self.net, runtime, stored=self.memory.columns),
            self.net,
            self.config,
            runtime=runtime,
            keep={
                "plastic": self.plastic,
                "stable": self.stable,
                "memory": self.memory,
                "steps": {"steps": self.steps},
            },
            after=self._average,
        )

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss with its terms."""
        x, y = self._view(images), labels
        replay = self.memory.draw(self.config.minibatch_size, self.draws)
        if replay is None:
            return {"loss": F.cross_entropy(self.net(x), y)}
        past, past_labels = self._view(replay["image"]), replay["label"].to(y.device)
        with torch.no_grad():
            wanted = more_confident_logits(self.plastic(past), self.stable(past), past_labels)
        consistency = F.mse_loss(self.net(past), wanted)
        cross_entropy = F.cross_entropy(self.net(torch.cat([x, past])), torch.cat([y, past_labels]))
        total = self.config.reg_weight * consistency + cross_entropy
        return {"loss": total, "consistency": consistency, "cross_entropy": cross_entropy}

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        nets = {"working": self.net, "plastic": self.plastic, "stable": self.stable}
        return rehearsal.predictor(nets[self.config.inference], query)

    def state_dict(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "plastic": self.plastic.state_dict(),
            "stable": self.stable.state_dict(),
            "memory": self.memory.state_dict(),
            "steps": int(self.steps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.plastic.load_state_dict(state["plastic"])
        self.stable.load_state_dict(state["stable"])
        self.memory.load_state_dict(state["memory"])
        self.steps = torch.tensor(int(state["steps"]))

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averages towards the working network, each with its probability."""
        c = self.config
        self.steps += 1
        warm = 1 - 1 / (int(self.steps) + 1)
        for name, net, frequency, alpha in (
            ("plastic", self.plastic, c.plastic_frequency, c.plastic_alpha),
            ("stable", self.stable, c.stable_frequency, c.stable_alpha),
        ):
            if float(self.draws.uniforms(1, of=name)) < frequency:
                keep = min(warm, alpha)
                for average, weight in zip(net.parameters(), self.net.parameters()):
                    average.mul_(keep).add_(weight, alpha=1 - keep)

    def _view(self, images: Tensor) -> Tensor:
        return rehearsal.augmented(images, self.config.augment, self.draws, self.net)


def more_confident_logits(plastic: Tensor, stable: Tensor, labels: Tensor) -> Tensor:
    """For each image the logits ``[images, classes]`` that give its label the larger probability."""
    own = labels[:, None]
    better = stable.softmax(dim=1).gather(1, own) > plastic.softmax(dim=1).gather(1, own)
    return torch.where(better, stable, plastic)
