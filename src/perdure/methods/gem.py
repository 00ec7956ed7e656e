"""GEM: a step must not raise the loss on any past task, by its stored images.

Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017 (arXiv 1706.08840).
The memory is shared equally among the tasks seen so far.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families import rehearsal
from perdure.families.rehearsal import gradients, heads, settings
from perdure.families.rehearsal.buffer import Draws, Memory
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.StepDescent):
    """Settings of GEM."""

    buffer_size: Annotated[int, Field(ge=0)] = 200
    """Slots of the memory, over all tasks."""
    margin: Annotated[float, Field(ge=0)] = 0.5
    """Least weight of a past task's gradient in a projected step (gamma): more favors old tasks."""


class Gem:
    """One network, and images, labels and task numbers of past tasks."""

    Config = Config
    answers = frozenset({"classify"})
    head_grows = frozenset({"net"})
    scores_are = "logits"

    def __init__(self, config: Config, *, net: nn.Module) -> None:
        self.config, self.net = config, net
        self.memory = Memory(config.buffer_size)
        self.draws = Draws()
        self.tasks = 0
        """Tasks learned."""

    preprocess = staticmethod(rehearsal.preprocess)
    merged = rehearsal.whole_network

    def learn(self, task: Task, runtime: Runtime) -> None:
        data = rehearsal.read(task, self.net, runtime, stored=self.memory.columns, grows=True)
        parameters = list(self.net.parameters())
        past = self._past_tasks()
        # One matrix for all steps: making it anew costs as much as a small network's gradients.
        memories = gradients.vector(parameters).double().expand(len(past), -1).clone()

        def gradient(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            for row, pair in zip(memories, past):
                row.copy_(gradients.gradient(self._loss(*pair), parameters))
            loss = self._loss(images, labels)
            g = gradients.gradient(loss, parameters)
            return loss, project(g, memories, margin=self.config.margin) if past else g

        rehearsal.learn_along(gradient, data, self.net, self.config, runtime=runtime)
        for _ in runtime.steps("store", total=1, state={"memory": self.memory}):
            self._store(data, runtime)
        self.tasks += 1

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        return rehearsal.predictor(self.net, query)

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "memory": self.memory.state_dict(), "tasks": self.tasks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        heads.load(self.net, state["net"])
        self.memory.load_state_dict(state["memory"])
        self.tasks = int(state["tasks"])

    def _past_tasks(self) -> list[tuple[Tensor, Tensor]]:
        """Images and labels of each stored task; without augmentation as the network takes them."""
        stored = self.memory.everything()
        if stored is None:
            return []
        if self.config.augment == "none":
            stored |= {"image": rehearsal.network_input(stored["image"], self.net)}
        device = next(self.net.parameters()).device
        of = [stored["task"] == number for number in stored["task"].unique()]
        return [(stored["image"][mask].to(device), stored["label"][mask].to(device)) for mask in of]

    def _store(self, data: rehearsal.Images, runtime: Runtime) -> None:
        """The first images of each stored task, and as many of this one."""
        share = self.config.buffer_size // (self.tasks + 1)
        chosen = runtime.permutation(len(data.labels), "stored")[:share].to(data.labels.device)
        columns = {"image": data.images[chosen], "label": data.labels[chosen]}
        columns["task"] = torch.full_like(columns["label"], self.tasks)
        stored = self.memory.everything()
        if stored is not None:
            tasks = stored["task"].tolist()
            kept = [i for i, number in enumerate(tasks) if tasks[:i].count(number) < share]
            old = {name: column[kept].to(data.labels.device) for name, column in stored.items()}
            columns = {name: torch.cat([old[name], column]) for name, column in columns.items()}
        self.memory.put(columns)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.net(rehearsal.augmented(images, self.config.augment, self.draws, self.net)), labels)


def project(g: Tensor, memories: Tensor, *, margin: float, eps: float = 1e-3) -> Tensor:
    """The step nearest to `g` ``[parameters]`` that raises no loss of `memories` ``[tasks, parameters]``.

    With rows G: ``g + G'v``, v >= margin the minimum of ``v'(GG' + eps I)v / 2 + (Gg)'v``; `g` itself where no
    product with a row is negative. Solved exactly, as non-negative least squares, in float64.
    """
    from scipy.optimize import nnls

    rows, target = memories.detach().double(), g.detach().double()
    products = rows @ target
    if bool((products >= 0).all()):
        return g
    quadratic = (rows @ rows.T).cpu().numpy() + eps * np.eye(len(rows))
    linear = products.cpu().numpy() + quadratic @ np.full(len(rows), margin)
    factor = np.linalg.cholesky(quadratic)
    beyond, _ = nnls(factor.T, -np.linalg.solve(factor, linear))
    v = torch.tensor(beyond + margin, device=g.device)
    return (rows.T @ v + target).to(g.dtype)
