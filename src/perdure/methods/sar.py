"""SAR: sharpness-aware entropy steps on reliable images, and a fresh start when the model collapses.

Niu et al., Towards Stable Test-Time Adaptation in Dynamic Wild World, ICLR 2023. For mixed shifts, batches of one image
and labels that come class by class; meant for models with layer or group norms.

Needs: 8 GB GPU memory for ViT-B/16 in batches of 64.

Knows the two passes of a step and the recovery. Weights and batches are in `perdure.families.test_time.adapting`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from perdure.families.test_time import adapting, settings
from perdure.families.test_time.adapting import Logits, Weights
from perdure.families.test_time.losses import entropy
from perdure.models.clip import Clip

COLLAPSED = 0.2
"""Moving average of the loss (nats) under which weights begin anew, however many classes there are."""
AVERAGE_MOMENTUM = 0.9

Recovery = Literal["published", "clean"]


@dataclass(frozen=True, kw_only=True)
class Config(settings.NormTuning):
    """Settings of SAR."""

    e_margin: float | None = None
    """An image is reliable under this entropy (nats); null: 0.4 ln C."""
    rho: Annotated[float, Field(ge=0)] = 0.05
    """Radius within which the loss is to be low."""
    skip: tuple[str, ...] | None = None
    """Norm layers with one of these in their name stay; null: those of the last quarter of blocks or fourth stage, and
    the final one. Published: `layer4`, `blocks.9`, `blocks.10`, `blocks.11`, `norm.`."""
    recovery: Recovery = "published"
    """After a collapse: as in the published code the momentum stays, and weights begin anew after every batch until the
    average has recovered; `clean` forgets momentum and average."""


class Sar(adapting.OnBatches):
    """Weights move over a test set and begin anew with the next, or when the model collapses."""

    Config = Config
    answers = frozenset({"classify"})
    not_updatable = "it learns nothing from training data"
    one_role_of = frozenset({"clip", "net"})

    def __init__(self, config: Config, *, clip: Clip | None = None, net: nn.Module | None = None) -> None:
        super().__init__(config, clip, net)

    def tunable(self) -> dict[str, nn.Parameter]:
        return adapting.visual_norms(self.module, self.clip, skip=self.config.skip)

    def remarks(self, classes: int) -> Iterator[str]:
        yield from super().remarks(classes)
        if self._margin(classes) <= COLLAPSED:
            yield f"reliable images have an entropy under {self._margin(classes):.2g}: SAR will often begin anew (0.2)"

    def stepper(self, logits: Logits, classes: int) -> Sharpness:
        config = self.config
        weights = Weights(self.tuned, adapting.descent_of(config, self.module), first=self.first)
        return Sharpness(
            logits,
            weights,
            e_margin=self._margin(classes),
            rho=config.rho,
            recovery=config.recovery,
            steps=config.steps,
            episodic=config.episodic,
        )

    def _margin(self, classes: int) -> float:
        return 0.4 * math.log(classes) if self.config.e_margin is None else self.config.e_margin


class Sharpness:
    """Steps down the entropy that reliable images have at the worst weights nearby."""

    def __init__(
        self,
        logits: Logits,
        weights: Weights,
        *,
        e_margin: float,
        rho: float = 0.05,
        recovery: Recovery = "published",
        steps: int = 1,
        episodic: bool = False,
    ) -> None:
        self.logits, self.weights, self.steps, self.episodic = logits, weights, steps, episodic
        self.e_margin, self.rho, self.recovery = e_margin, rho, recovery
        self.average: float | None = None
        """Moving average of the loss nearby; None before the first."""
        self.restored = 0
        """How often weights began anew, episodes included."""

    def answer(self, pixels: Tensor, seeds: list[int]) -> Tensor:
        if self.episodic:
            self._begin_anew()
            self.average = None
        if not self.steps:
            with torch.no_grad():
                return self.logits(pixels)
        z = pixels
        for _ in range(self.steps):
            z, loss = self._step(pixels)
            if loss is not None:
                moved = None if self.average is None else AVERAGE_MOMENTUM * self.average
                self.average = loss if moved is None else moved + (1 - AVERAGE_MOMENTUM) * loss
            if self.average is not None and self.average < COLLAPSED:
                self._begin_anew()
                if self.recovery == "clean":
                    self.average = None
        return z

    def _step(self, pixels: Tensor) -> tuple[Tensor, float | None]:
        """Logits before the step, and the loss nearby (None where no image is reliable there)."""
        with torch.enable_grad():
            z = self.logits(pixels)
            h = entropy(z)
            sure = (h < self.e_margin).detach()
            gradients = self._gradients(h[sure])
        norm = torch.stack([g.norm() for g in gradients]).norm()
        here = {n: p.detach().clone() for n, p in self.weights.tuned.items()}
        ascent = (self.rho / (norm + 1e-12)) if self.rho else 0.0
        self.weights.fill({n: here[n] + ascent * g for n, g in zip(here, gradients)})
        loss = None
        with torch.enable_grad():
            if bool(sure.any()):
                near = entropy(self.logits(pixels))[sure]
                near = near[near.detach() < self.e_margin]
                gradients = self._gradients(near)
                loss = float(near.detach().mean()) if len(near) else None
        self.weights.fill(here)
        self.weights.step(gradients)  # with no reliable image the gradient is 0, and momentum acts all the same
        return z.detach(), loss

    def _gradients(self, entropies: Tensor) -> list[Tensor]:
        if len(entropies):
            return self.weights.gradients(entropies.mean())
        return [torch.zeros_like(p) for p in self.weights.tuned.values()]

    def _begin_anew(self) -> None:
        """As published, momentum stays: it lives in the optimizer that is not reset."""
        self.weights.restore(optimizer=self.recovery == "clean")
        self.restored += 1

    def restore(self) -> None:
        self.weights.restore()
        self.average = None

    def state_dict(self) -> dict[str, Any]:
        return self.weights.state_dict() | {"average": self.average, "restored": self.restored}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights.load_state_dict(state)
        self.average, self.restored = state["average"], state["restored"]
