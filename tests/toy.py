"""A method that is small enough to read at once: a linear classifier on 2x2-pooled pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perdure import loading, training
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the toy."""

    lr: float = 0.1
    epochs: int = 3
    batch_size: int = 5
    classes: int = 6
    accumulate: int = 1
    dropout: float = 0.1


class Toy:
    """Linear softmax classifier with one column a class, trained on the present task alone."""

    Config = Config
    answers = frozenset({"classify"})

    def __init__(self, config: Config, *, net: nn.Module | None = None) -> None:
        self.config = config
        self.net = net or nn.Linear(12, config.classes)

    def preprocess(self, example: Example, training: bool) -> Batch:
        image = torch.from_numpy(example.inputs["image"]).permute(2, 0, 1) / 255
        noise = 0.05 * torch.randn(12) if training else torch.zeros(12)
        return {"x": F.adaptive_avg_pool2d(image, 2).flatten() + noise, "label": example.target}

    def learn(self, task: Task, runtime: Runtime) -> None:
        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(self.net(F.dropout(batch["x"], self.config.dropout)), batch["label"])

        batches = loading.ExampleBatches(
            task.train,
            self.preprocess,
            batch_size=self.config.batch_size,
            runtime=runtime,
            stage="train",
            training=True,
        )
        settings = training.Fit(lr=self.config.lr, epochs=self.config.epochs, accumulate=self.config.accumulate)
        self.history = training.fit(
            loss, dict(self.net.named_parameters()), batches, settings, runtime=runtime, stage="train"
        )

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        last = query.offset + len(query.candidates)
        return lambda batch: self.net(batch["x"])[:, query.offset : last]

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
