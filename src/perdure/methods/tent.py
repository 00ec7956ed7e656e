"""TENT: each batch of test images moves the norm layers towards surer answers; without steps, a baseline.

Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021. On zero-shot CLIP (its image tower) or
a plain network. With `steps: 0` nothing moves: `statistics: batch` is the baseline `norm`, `stored` is `source`.

Needs: 8 GB GPU memory for ViT-B/16 in batches of 64.

Knows the loss. Weights and batches are in `perdure.families.test_time.adapting`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perdure.families.test_time import adapting, settings
from perdure.families.test_time.adapting import Logits, Weights
from perdure.families.test_time.losses import entropy
from perdure.models.clip import Clip


@dataclass(frozen=True, kw_only=True)
class Config(settings.NormTuning):
    """Settings of TENT."""

    nesterov: bool = False
    """Nesterov's momentum, as TENT's own runs on ImageNet-C have it."""


class Tent(adapting.OnBatches):
    """Weights move over a test set and begin anew with the next."""

    Config = Config
    answers = frozenset({"classify"})
    not_updatable = "it learns nothing from training data"
    one_role_of = frozenset({"clip", "net"})

    def __init__(self, config: Config, *, clip: Clip | None = None, net: nn.Module | None = None) -> None:
        super().__init__(config, clip, net)

    def stepper(self, logits: Logits, classes: int) -> Entropy:
        descent = adapting.descent_of(self.config, self.module, nesterov=self.config.nesterov)
        weights = Weights(self.tuned, descent, first=self.first)
        return Entropy(logits, weights, steps=self.config.steps, episodic=self.config.episodic)


class Entropy:
    """Steps down the mean entropy of each batch; a batch is answered by its last pass, before the last step."""

    def __init__(self, logits: Logits, weights: Weights, *, steps: int = 1, episodic: bool = False) -> None:
        self.logits, self.weights, self.steps, self.episodic = logits, weights, steps, episodic

    def answer(self, pixels: Tensor, seeds: list[int]) -> Tensor:
        if self.episodic:
            self.restore()
        if not self.steps:
            with torch.no_grad():
                return self.logits(pixels)
        z = pixels
        for _ in range(self.steps):
            with torch.enable_grad():
                z = self.logits(pixels)
                loss = entropy(z).mean()
            self.weights.step(self.weights.gradients(loss))
        return z.detach()

    def restore(self) -> None:
        self.weights.restore()

    def state_dict(self) -> dict[str, Any]:
        return self.weights.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights.load_state_dict(state)
