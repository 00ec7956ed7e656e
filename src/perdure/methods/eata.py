"""EATA: TENT on reliable, not redundant images, held near weights that matter for clean ones (ETA without the latter).

Niu et al., Efficient Test-Time Model Adaptation without Forgetting, ICML 2022. The anchor is made of the first task's
training images, without their labels, where the stream brings any; without them this is ETA.

Needs: 8 GB GPU memory for ViT-B/16 in batches of 64.

Knows the choice of images, the loss and the anchor. Weights and batches are in `perdure.families.test_time.adapting`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families.test_time import adapting, norms, settings
from perdure.families.test_time.adapting import Logits, Weights
from perdure.families.test_time.losses import entropy
from perdure.loading import ExampleBatches
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Query, Task

MEAN_MOMENTUM = 0.9
"""Of the moving mean of probabilities."""


@dataclass(frozen=True, kw_only=True)
class Config(settings.NormTuning):
    """Settings of EATA; the defaults are those for ImageNet-C."""

    e_margin: float | None = None
    """An image is reliable under this entropy (nats); null: 0.4 ln C."""
    d_margin: float = 0.05
    """An image is not redundant if the cosine of its probabilities with their moving mean is less (CIFAR-10: 0.4)."""
    fisher_alpha: Annotated[float, Field(ge=0)] = 2000.0
    """Weight of the anchor (CIFAR: 1); 0 is ETA."""
    fisher_size: Annotated[int, Field(ge=1)] = 2000
    """Clean images of which the anchor is made, at most."""
    reset_mean: bool = False
    """Forget the moving mean, too, where weights begin anew; false as published. It is forgotten where the number of
    classes changes."""


class Eata(adapting.OnBatches):
    """Weights move over a test set and begin anew with the next; the moving mean goes on."""

    Config = Config
    answers = frozenset({"classify"})
    not_updatable = "it learns nothing from training data but its anchor, once"
    one_role_of = frozenset({"clip", "net"})

    def __init__(self, config: Config, *, clip: Clip | None = None, net: nn.Module | None = None) -> None:
        super().__init__(config, clip, net)
        self.fisher: dict[str, Tensor] | None = None
        self.mean: Tensor | None = None
        """With which the next test set begins, where a run was resumed."""

    def learn(self, task: Task, runtime: Runtime) -> None:
        """The anchor, once, from a task's training images; their labels are not read."""
        super().learn(task, runtime)
        if not self.config.fisher_alpha or self.fisher is not None:
            return
        if not len(task.train):
            if task.index == 0:
                runtime.say("no clean images (`stream.clean`): EATA runs without its anchor, as ETA")
            return
        clean = ExampleBatches(
            task.train.select(range(min(len(task.train), self.config.fisher_size))),
            self.preprocess,
            batch_size=self.config.batch_size,
            runtime=runtime,
            stage="fisher",
            training=False,
        )
        norms.follow(self.module, self.config.statistics)
        query = Query(kind="classify", candidates=task.candidates, offset=task.offset)
        with torch.enable_grad():  # in full precision: squares of gradients need it
            logits = self.classify(query)
            batches = (self.pixels(batch) for batch, _ in clean.epoch(0) if batch is not None)
            self.fisher = fisher(logits, self.tuned, batches)

    def stepper(self, logits: Logits, classes: int) -> Reliable:
        config = self.config
        weights = Weights(self.tuned, adapting.descent_of(config, self.module), first=self.first)
        made = Reliable(
            logits,
            weights,
            e_margin=0.4 * math.log(classes) if config.e_margin is None else config.e_margin,
            d_margin=config.d_margin,
            alpha=config.fisher_alpha,
            fisher=self.fisher,
            steps=config.steps,
            episodic=config.episodic,
            reset_mean=config.reset_mean,
        )
        mean = self.mean if self.carried is None else self.carried.mean  # type: ignore[attr-defined]
        if mean is not None and len(mean) == classes and not config.reset_mean:
            made.mean = mean.to(weights.device)
        return made

    def state_dict(self) -> dict[str, Any]:
        mean = self.mean if self.carried is None else self.carried.mean  # type: ignore[attr-defined]
        more = {"fisher": self.fisher, "mean": mean}
        return super().state_dict() | {name: value for name, value in more.items() if value is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.fisher, self.mean = state.get("fisher"), state.get("mean")


def fisher(logits: Logits, tuned: Mapping[str, Tensor], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Of each weight, the mean over batches of the squared gradient of the cross-entropy with the model's answers."""
    total = {name: torch.zeros_like(p) for name, p in tuned.items()}
    count = 0
    for pixels in batches:
        z = logits(pixels)
        loss = F.cross_entropy(z, z.detach().argmax(-1))
        for name, gradient in zip(total, torch.autograd.grad(loss, list(tuned.values()))):
            total[name] += gradient.detach() ** 2
        count += 1
    return {name: value / max(count, 1) for name, value in total.items()}


class Reliable:
    """Steps down the weighed entropy of the chosen images of each batch, and towards the anchor.

    Args:
        fisher: how much each weight matters for clean images; None: no anchor.
    """

    def __init__(
        self,
        logits: Logits,
        weights: Weights,
        *,
        e_margin: float,
        d_margin: float,
        alpha: float = 0.0,
        fisher: Mapping[str, Tensor] | None = None,
        steps: int = 1,
        episodic: bool = False,
        reset_mean: bool = False,
    ) -> None:
        self.logits, self.weights, self.steps, self.episodic = logits, weights, steps, episodic
        self.e_margin, self.d_margin, self.alpha, self.reset_mean = e_margin, d_margin, alpha, reset_mean
        self.fisher = None if fisher is None or not alpha else {n: t.to(weights.device) for n, t in fisher.items()}
        self.mean: Tensor | None = None
        """Moving mean of the chosen images' probabilities; None before the first."""
        self.reliable = self.used = 0
        """Images so far, over all steps."""

    def answer(self, pixels: Tensor, seeds: list[int]) -> Tensor:
        if self.episodic:
            self.restore()
        z = pixels
        for _ in range(self.steps):
            with torch.enable_grad():
                z = self.logits(pixels)
                chosen = self._choose(z.detach())
                if len(chosen):
                    self.weights.step(self.weights.gradients(self._loss(z[chosen])))
        if not self.steps:
            with torch.no_grad():
                return self.logits(pixels)
        return z.detach()

    def _choose(self, z: Tensor) -> Tensor:
        """Positions of images that are reliable and not redundant; the moving mean takes them in."""
        p = z.softmax(-1)
        chosen = (entropy(z) < self.e_margin).nonzero()[:, 0]
        self.reliable += len(chosen)
        if self.mean is not None:
            alike = F.cosine_similarity(self.mean[None], p[chosen], dim=-1, eps=1e-8).abs()
            chosen = chosen[alike < self.d_margin]
        self.used += len(chosen)
        if len(chosen):
            new = p[chosen].mean(0)
            self.mean = new if self.mean is None else MEAN_MOMENTUM * self.mean + (1 - MEAN_MOMENTUM) * new
        return chosen

    def _loss(self, z: Tensor) -> Tensor:
        h = entropy(z)
        loss = ((self.e_margin - h.detach()).exp() * h).mean()
        if self.fisher is None:
            return loss
        pulls = self._pulls(self.fisher)
        return loss + self.alpha * torch.stack(list(pulls)).sum()

    def _pulls(self, fisher: Mapping[str, Tensor]) -> Iterator[Tensor]:
        for name, weight in self.weights.tuned.items():
            yield (fisher[name] * (weight - self.weights.first[name]) ** 2).sum()

    def restore(self) -> None:
        self.weights.restore()
        if self.reset_mean:
            self.mean = None

    def state_dict(self) -> dict[str, Any]:
        counts = {"reliable": self.reliable, "used": self.used}
        return self.weights.state_dict() | counts | ({} if self.mean is None else {"mean": self.mean})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights.load_state_dict(state)
        mean = state.get("mean")
        self.mean = None if mean is None else mean.to(self.weights.device)
        self.reliable, self.used = state["reliable"], state["used"]
