"""ER-ACE: asymmetric cross-entropy, so that new classes do not push old ones away.

Caccia et al., "New Insights on Reducing Abrupt Representation Change in Online Continual Learning", ICLR 2022
(arXiv 2104.05025). On the current batch the softmax runs over the classes in it (and future ones) only; on the
replayed batch over all. The head is cosine similarity times 10, as is usual for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families import rehearsal
from perdure.families.rehearsal import settings
from perdure.families.rehearsal.buffer import Draws, Memory
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task

MASKED = -1e9
"""Logit of a class that is left out of the softmax."""


@dataclass(frozen=True, kw_only=True)
class Config(settings.Replay, settings.StepDescent):
    """Settings of ER-ACE."""

    cosine_head: bool = True
    """Put a cosine head (scale 10) in the place of the network's linear one."""
    task_free: bool = False
    """Mask from the first task on: for streams without task boundaries."""


class ErAce:
    """One network and a reservoir of images and labels."""

    Config = Config
    answers = frozenset({"classify"})
    scores_are = "logits"

    def __init__(self, config: Config, *, net: nn.Module) -> None:
        self.config, self.net = config, net
        if config.cosine_head:
            net.head = CosineHead(cast(nn.Linear, net.get_submodule("head")))
        self.memory = Memory(config.buffer_size)
        self.draws = Draws()
        self.tasks = 0
        """Tasks learned."""
        self.newest = torch.tensor(-1)
        """Highest label seen so far."""

    preprocess = staticmethod(rehearsal.preprocess)
    merged = rehearsal.whole_network

    def learn(self, task: Task, runtime: Runtime) -> None:
        def loss(images: Tensor, labels: Tensor, at: rehearsal.At) -> Mapping[str, Tensor]:
            values = self.losses(images, labels)
            self.memory.add({"image": images, "label": labels}, self.draws)
            return values

        data = rehearsal.read(task, self.net, runtime, stored=self.memory.columns)
        self.newest = self.newest.to(data.labels.device)
        keep = {"memory": self.memory, "newest": {"label": self.newest}}
        rehearsal.learn(loss, data, self.net, self.config, runtime=runtime, keep=keep)
        self.tasks += 1

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss with its two terms."""
        logits = self.net(self._view(images))
        self.newest.copy_(torch.maximum(self.newest, labels.max()))
        if self.tasks > 0 or self.config.task_free:
            logits = mask_absent(logits, labels, newest=self.newest)
        current = F.cross_entropy(logits, labels)
        replay = self.memory.draw(self.config.minibatch_size, self.draws)
        if replay is None:
            return {"loss": current}
        again = self.net(self._view(replay["image"]))
        past = F.cross_entropy(again, replay["label"].to(again.device))
        return {"loss": current + past, "current": current, "replayed": past}

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        return rehearsal.predictor(self.net, query)

    def state_dict(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "memory": self.memory.state_dict(),
            "tasks": self.tasks,
            "newest": int(self.newest),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.memory.load_state_dict(state["memory"])
        self.tasks, self.newest = int(state["tasks"]), torch.tensor(int(state["newest"]))

    def _view(self, images: Tensor) -> Tensor:
        return rehearsal.augmented(images, self.config.augment, self.draws, self.net)


def mask_absent(logits: Tensor, labels: Tensor, *, newest: Tensor) -> Tensor:
    """Logits ``[images, classes]`` without the classes that are neither among `labels` nor future.

    Future are the labels from `newest`, the highest seen, on.
    """
    classes = torch.arange(logits.shape[1], device=logits.device)
    present = (classes[:, None] == labels[None, :]).any(dim=1)
    return logits.masked_fill(~(present | (classes >= newest)), MASKED)


class CosineHead(nn.Module):
    """``10 cos(feature, weight of the class)``, in the place of a linear head."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(head.weight.detach().clone())

    def forward(self, features: Tensor) -> Tensor:
        return 10 * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))
