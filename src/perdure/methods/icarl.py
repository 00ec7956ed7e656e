"""iCaRL: binary cross-entropy with distillation, exemplars by herding, answers by the nearest class mean.

Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017 (arXiv 1611.07725).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families import rehearsal
from perdure.families.rehearsal import settings
from perdure.families.rehearsal.buffer import Draws, Memory, herding
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task

UNSEEN = -1e6
"""Score of a class without exemplars."""


@dataclass(frozen=True, kw_only=True)
class Config(settings.StepDescent):
    """Settings of iCaRL."""

    buffer_size: Annotated[int, Field(gt=0)] = 200
    """Exemplars over all classes; shared equally among the classes seen so far."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    """Weight of the sum of squared parameters in the loss."""


class Icarl:
    """One network and exemplars of each class, the most typical first."""

    Config = Config
    answers = frozenset({"classify"})
    answers_from = frozenset({"memory"})
    """Its class means are those of the exemplars in memory, which an export therefore holds."""

    def __init__(self, config: Config, *, net: nn.Module) -> None:
        self.config, self.net = config, net
        self.memory = Memory(config.buffer_size)
        self.draws = Draws()
        self.past = 0
        """Classes of the tasks learned."""

    preprocess = staticmethod(rehearsal.preprocess)
    merged = rehearsal.whole_network

    def learn(self, task: Task, runtime: Runtime) -> None:
        c = self.config
        data = rehearsal.read(task, self.net, runtime, stored=self.memory.columns)
        old = copy.deepcopy(self.net).eval() if self.past else None
        optimizer = rehearsal.sgd(self.net, c.lr)

        def step(images: Tensor, labels: Tensor, at: rehearsal.At) -> Mapping[str, Tensor]:
            rehearsal.enter_training(self.net)
            rehearsal.set_lr(optimizer, c.lr, c.milestones, at.epoch)
            x = rehearsal.augmented(images, c.augment, self.draws, self.net)
            old_outputs = None
            if old is not None:
                with torch.no_grad():
                    old_outputs = torch.sigmoid(old(x))
            with runtime.autocast():
                loss = self.loss(x, labels, old_outputs, past=self.past)
            rehearsal.descend(loss, optimizer, runtime)
            return {"loss": loss}

        rehearsal.train(
            step,
            self._with_exemplars(data),
            epochs=c.epochs,
            batch_size=c.batch_size,
            runtime=runtime,
            stage="train",
            state={"net": self.net},
        )
        seen = max(self.past, task.offset + len(task.candidates))
        for _ in runtime.steps("exemplars", total=1, state={"memory": self.memory}):
            self.choose_exemplars(data, seen=seen)
        self.past = seen

    def loss(self, x: Tensor, labels: Tensor, old: Tensor | None, *, past: int) -> Tensor:
        """Binary cross-entropy over all outputs, plus weight decay.

        Args:
            x: network input ``[images, ...]``.
            old: the old network's sigmoid outputs ``[images, classes]``: the targets of the `past` classes.
        """
        logits = self.net(x)
        target = F.one_hot(labels, logits.shape[1]).to(logits)
        if old is not None:
            target = torch.cat([old[:, :past].to(logits), target[:, past:]], dim=1)
        squares = sum((p**2).sum() for p in self.net.parameters())
        return F.binary_cross_entropy_with_logits(logits, target) + self.config.weight_decay * squares

    @torch.no_grad()
    def choose_exemplars(self, data: rehearsal.Images, *, seen: int) -> None:
        """Keep the first exemplars of old classes, choose those of the classes in `data` by herding.

        Of a class that comes again, the exemplars are chosen among the old ones and the new images.
        """
        share = self.config.buffer_size // seen
        self.net.eval()
        parts: list[tuple[Tensor, Tensor]] = []
        fresh = data
        stored = self.memory.everything()
        if stored is not None:
            again = torch.isin(stored["label"], data.labels.to(stored["label"].device))
            for label in stored["label"][~again].unique():
                mine = (stored["label"] == label).nonzero()[:share, 0]
                parts.append((stored["image"][mine], stored["label"][mine]))
            if bool(again.any()):
                fresh = self._with_exemplars(data)
        for label in data.labels.unique():
            of = (fresh.labels == label).nonzero()[:, 0]
            features = F.normalize(self._features(fresh.images[of]), dim=1)
            mine = of[herding(features, share).to(of.device)]
            parts.append((fresh.images[mine], fresh.labels[mine]))
        device = data.labels.device
        self.memory.put(
            {
                "image": torch.cat([images.to(device) for images, _ in parts]),
                "label": torch.cat([labels.to(device) for _, labels in parts]),
            }
        )

    @torch.no_grad()
    def class_means(self) -> dict[int, Tensor]:
        """Label -> mean feature of its exemplars and their mirror images, of length 1."""
        self.net.eval()
        stored = self.memory.everything()
        if stored is None:
            return {}
        means = {}
        for label in stored["label"].unique().tolist():
            images = stored["image"][stored["label"] == label]
            both = [F.normalize(self._features(view), dim=1).mean(dim=0) for view in (images, images.flip(-1))]
            means[label] = F.normalize((both[0] + both[1]) / 2, dim=0)
        return means

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        self.net.eval()
        means = self.class_means()
        if not means:
            return rehearsal.predictor(self.net, query)
        labels = list(range(query.offset, query.offset + len(query.candidates)))

        def predict(batch: Batch) -> Tensor:
            features = F.normalize(self._features(batch["image"]), dim=1)
            scores = torch.full((len(features), len(labels)), UNSEEN, device=features.device, dtype=features.dtype)
            for column, label in enumerate(labels):
                if label in means:
                    scores[:, column] = -((features - means[label]) ** 2).sum(dim=1)
            return scores

        return predict

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict(), "memory": self.memory.state_dict(), "past": self.past}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.memory.load_state_dict(state["memory"])
        self.past = int(state["past"])

    def _with_exemplars(self, data: rehearsal.Images) -> rehearsal.Images:
        stored = self.memory.everything()
        if stored is None:
            return data
        device = data.labels.device
        return rehearsal.Images(
            images=torch.cat([data.images, stored["image"].to(device)]),
            labels=torch.cat([data.labels, stored["label"].to(device)]),
        )

    def _features(self, images: Tensor) -> Tensor:
        features = cast(Any, self.net).features
        parts = [features(rehearsal.network_input(part, self.net)) for part in images.split(256)]
        return torch.cat(parts)
