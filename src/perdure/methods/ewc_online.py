"""Online EWC: parameters that mattered for past tasks are held by a quadratic penalty.

Kirkpatrick et al. 2017 (arXiv 1612.00796), in the online form of Schwarz et al., "Progress & Compress", ICML
2018 (arXiv 1805.06370): one running Fisher diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families import rehearsal
from perdure.families.rehearsal import gradients, settings
from perdure.families.rehearsal.buffer import Draws
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.StepDescent):
    """Settings of online EWC."""

    e_lambda: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the penalty."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """What remains of the running Fisher diagonal when a task is added."""
    fisher: Literal["running_statistics", "single_images"] = "running_statistics"
    """Batch norm while measuring the Fisher diagonal: in evaluation mode, many images at once; or in training
    mode, image by image, which also moves the running statistics (as the code of the literature does)."""


class EwcOnline:
    """One network, the running Fisher diagonal, and the parameters after the last task."""

    Config = Config
    answers = frozenset({"classify"})
    not_merged = "it holds the weights that were learned, not merged ones"
    scores_are = "logits"

    def __init__(self, config: Config, *, net: nn.Module) -> None:
        self.config, self.net = config, net
        self.draws = Draws()
        self.anchor: dict[str, Tensor] = {}
        """``fisher`` and ``parameters`` [all parameters], from the end of the first task on."""

    preprocess = staticmethod(rehearsal.preprocess)

    def learn(self, task: Task, runtime: Runtime) -> None:
        c = self.config
        data = rehearsal.read(task, self.net, runtime)
        anchor = {name: value.to(runtime.device) for name, value in self.anchor.items()}

        def loss(images: Tensor, labels: Tensor, at: rehearsal.At) -> Mapping[str, Tensor]:
            logits = self.net(rehearsal.augmented(images, c.augment, self.draws, self.net))
            cross_entropy = F.cross_entropy(logits, labels)
            penalty = self._penalty(anchor, cross_entropy)
            return {"loss": cross_entropy + c.e_lambda * penalty, "cross_entropy": cross_entropy, "penalty": penalty}

        rehearsal.learn(loss, data, self.net, c, runtime=runtime)
        self.remember(data)

    def remember(self, data: rehearsal.Images) -> None:
        """Add the task's Fisher diagonal and hold the parameters where they are."""
        fisher = self._fisher(data)
        if self.anchor:
            fisher = fisher + self.config.gamma * self.anchor["fisher"].to(fisher.device)
        self.anchor = {"fisher": fisher, "parameters": gradients.vector(list(self.net.parameters()))}

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        return rehearsal.predictor(self.net, query)

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "anchor": dict(self.anchor)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.anchor = dict(state["anchor"])

    def _penalty(self, anchor: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """``sum_p F_p (theta_p - theta*_p)^2``; its gradient is ``2 F (theta - theta*)``."""
        if not anchor:
            return torch.zeros_like(like)
        now = torch.cat([p.flatten() for p in self.net.parameters()])
        return (anchor["fisher"] * (now - anchor["parameters"]) ** 2).sum()

    def _fisher(self, data: rehearsal.Images) -> Tensor:
        """``sum_i p_i g_i^2 / (batches x batch size)``, g_i the gradient of ``log p_i``, p_i that of the label."""
        size = self.config.batch_size
        batches = len(data.cuts) if data.cuts is not None else -(-len(data.labels) // size)
        together = self.config.fisher == "running_statistics"
        self.net.train(not together)
        total = 0.0
        for images, labels in zip(data.images.split(64), data.labels.split(64)):
            x = rehearsal.network_input(images, self.net)
            total = total + (squares(self.net, x, labels) if together else self._one_by_one(x, labels))
        assert isinstance(total, Tensor)
        return total / (batches * size)

    def _one_by_one(self, x: Tensor, labels: Tensor) -> Tensor:
        parameters, total = list(self.net.parameters()), 0.0
        for i in range(len(x)):
            log_p = -F.cross_entropy(self.net(x[i : i + 1]), labels[i : i + 1])
            total = total + log_p.detach().exp() * gradients.gradient(log_p, parameters) ** 2
        assert isinstance(total, Tensor)
        return total


def squares(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """``sum_i p_i g_i^2`` over a batch ``[images, ...]`` -> ``[parameters]``, by one vectorized backward pass."""
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    buffers = {name: b.detach() for name, b in net.named_buffers()}

    def log_p(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.func.functional_call(net, (weights, buffers), (image[None],))
        value = -F.cross_entropy(logits, label[None])
        return value, value

    per_image = torch.func.vmap(torch.func.grad(log_p, has_aux=True), in_dims=(None, 0, 0))
    found, values = per_image(parameters, x, labels)
    weight = values.detach().exp()
    return torch.cat([(weight @ (found[name].flatten(1) ** 2)) for name in parameters])
