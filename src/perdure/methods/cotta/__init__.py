"""CoTTA: an averaged teacher answers, over 32 augmentations where unsure; weights are restored here and there.

Wang et al., Continual Test-Time Domain Adaptation, CVPR 2022. All weights and biases of layers move. Meant for shift
after shift without a reset (`continual: true`). The defaults are those for ImageNet-C.

Needs: 16 GB GPU memory for ViT-B/16 in batches of 64.

Knows student, teacher and what is restored. Augmentations are in `augment`, weights and batches in
`perdure.families.test_time.adapting`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from perdure.errors import DataError
from perdure.families.test_time import adapting, norms, settings
from perdure.families.test_time.adapting import Descent, Logits, Weights
from perdure.keys import key_seed
from perdure.methods.cotta.augment import augment
from perdure.models.clip import Clip

Loss = Literal["teacher", "symmetric"]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Config(settings.Batches):
    """Settings of CoTTA."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with Nesterov's momentum, or Adam (CIFAR)."""
    lr: Annotated[float, Field(ge=0)] = 0.01
    """Learning rate (CIFAR, with Adam: 0.001)."""
    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Of SGD."""
    loss: Loss = "symmetric"
    """Cross-entropy of the student with the teacher (CIFAR), or half of that and half the other way round."""
    teacher_momentum: Share = 0.999
    """What the teacher keeps of itself at a step."""
    restore_probability: Share = 0.001
    """Of each weight, to be what it was at first after a step (CIFAR: 0.01)."""
    augmentation_threshold: Share = 0.1
    """Below this mean confidence of the first model in a batch, the teacher averages over augmentations (CIFAR-10:
    0.92, CIFAR-100: 0.72)."""
    augmentations: Annotated[int, Field(ge=1)] = 32
    """Augmentations of a batch."""


class Cotta(adapting.OnBatches):
    """Student and teacher move over a test set, or with `continual` over all."""

    Config = Config
    answers = frozenset({"classify"})
    not_updatable = "it learns nothing from training data"
    one_role_of = frozenset({"clip", "net"})

    def __init__(self, config: Config, *, clip: Clip | None = None, net: nn.Module | None = None) -> None:
        super().__init__(config, clip, net)

    def tunable(self) -> dict[str, nn.Parameter]:
        """Every tensor that a layer calls weight or bias: of a network, or of a CLIP's image tower."""
        found = weights_and_biases(self.module)
        return found if self.clip is None else {n: p for n, p in found.items() if n.startswith("vision_model.")}

    def remarks(self, classes: int) -> Iterator[str]:
        return iter(())

    def stepper(self, logits: Logits, classes: int) -> Taught:
        config = self.config
        descent = Descent(
            optimizer=config.optimizer, lr=config.lr, momentum=config.momentum, nesterov=config.optimizer == "sgd"
        )
        return Taught(
            self.module,
            logits,
            Weights(self.tuned, descent, first=self.first),
            loss=config.loss,
            teacher_momentum=config.teacher_momentum,
            restore_probability=config.restore_probability,
            threshold=config.augmentation_threshold,
            augmentations=config.augmentations,
            steps=config.steps,
            episodic=config.episodic,
        )


def weights_and_biases(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that a layer itself calls ``weight`` or ``bias``, by name, in the module's order."""
    return {
        f"{name}.{kind}" if name else kind: parameter
        for name, layer in module.named_modules()
        for kind, parameter in layer.named_parameters(recurse=False)
        if kind in ("weight", "bias")
    }


Augment = Callable[[Tensor, int], Tensor]
"""Pixels in 0..1 and the number of an augmentation -> pixels; the same draw for the whole batch."""
Masks = Callable[[str, Tensor], Bool[Tensor, "..."]]
"""Name and value of a weight -> which of its numbers are restored."""


class Taught:
    """Steps towards an averaged teacher, who answers before it moves."""

    def __init__(
        self,
        module: nn.Module,
        logits: Logits,
        weights: Weights,
        *,
        loss: Loss,
        teacher_momentum: float,
        restore_probability: float,
        threshold: float,
        augmentations: int = 32,
        steps: int = 1,
        episodic: bool = False,
    ) -> None:
        self.logits, self.weights, self.steps, self.episodic = logits, weights, steps, episodic
        self.called = _Called(module, logits)
        self.loss, self.momentum, self.probability = loss, teacher_momentum, restore_probability
        self.threshold, self.augmentations = threshold, augmentations
        self.at_once = 1 if norms.has_batch_norm(module) else augmentations
        self.teacher = {n: t.clone() for n, t in weights.first.items()}
        self.confidence, self.augmented = math.nan, 0
        """Of the first model in the last step, and augmentations so far."""

    def answer(self, pixels: Tensor, seeds: list[int]) -> Tensor:
        _require_range(pixels)
        seed = key_seed("cotta", *seeds)
        return self.adapt(
            pixels,
            lambda step: partial(_augmented, seed=key_seed("augment", seed, step)),
            lambda step: _Bernoulli(self.probability, key_seed("restore", seed, step)),
        )

    def adapt(
        self, pixels: Tensor, augment_of: Callable[[int], Augment], masks_of: Callable[[int], Masks]
    ) -> Float[Tensor, "images classes"]:
        """The teacher's logits of a batch; then student, teacher and restored weights move.

        Args:
            augment_of, masks_of: what is drawn in each step.
        """
        if self.episodic:
            self.restore()
        taught = pixels
        for step in range(self.steps):
            taught = self._step(pixels, augment_of(step), masks_of(step))
        if not self.steps:
            with torch.no_grad():
                return self._with(self.teacher, pixels)
        return taught

    def _step(self, pixels: Tensor, augment: Augment, masks: Masks) -> Tensor:
        tuned = self.weights.tuned
        with torch.no_grad():
            self.confidence = float(self._with(self.weights.first, pixels).softmax(-1).amax(-1).mean())
            taught = self._taught(pixels, augment)
        with torch.enable_grad():
            loss = self._loss(self.logits(pixels), taught)
        self.weights.step(self.weights.gradients(loss))
        with torch.no_grad():
            teacher = list(self.teacher.values())
            torch._foreach_mul_(teacher, self.momentum)
            torch._foreach_add_(teacher, [tuned[n].detach() for n in self.teacher], alpha=1 - self.momentum)
            for name, weight in tuned.items():
                mask = masks(name, weight)
                weight.copy_(torch.where(mask, self.weights.first[name], weight))
        torch.clear_autocast_cache()
        return taught

    def _taught(self, pixels: Tensor, augment: Augment) -> Tensor:
        """The teacher's logits, or their mean over augmentations where the first model is unsure."""
        if not self.confidence < self.threshold:
            return self._with(self.teacher, pixels)
        total: Any = 0
        for begin in range(0, self.augmentations, self.at_once):
            numbers = range(begin, min(begin + self.at_once, self.augmentations))
            copies = torch.cat([augment(pixels, k) for k in numbers])
            total = total + self._with(self.teacher, copies).view(len(numbers), len(pixels), -1).sum(0)
        self.augmented += self.augmentations
        return total / self.augmentations

    def _loss(self, z: Tensor, taught: Tensor) -> Tensor:
        towards = -(taught.softmax(-1) * z.log_softmax(-1)).sum(-1)
        if self.loss == "teacher":
            return towards.mean()
        return (0.5 * towards - 0.5 * (z.softmax(-1) * taught.log_softmax(-1)).sum(-1)).mean()

    def _with(self, values: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
        """Logits under other weights."""
        return functional_call(self.called, {f"module.{n}": t for n, t in values.items()}, (pixels,))

    def restore(self) -> None:
        self.weights.restore()
        self.teacher = {n: t.clone() for n, t in self.weights.first.items()}

    def state_dict(self) -> dict[str, Any]:
        return self.weights.state_dict() | {"teacher": self.teacher}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights.load_state_dict(state)
        self.teacher = {n: t.clone().to(self.weights.device) for n, t in state["teacher"].items()}


class _Called(nn.Module):
    """A function that runs a module, as a module whose weights `functional_call` may exchange."""

    def __init__(self, module: nn.Module, logits: Logits) -> None:
        super().__init__()
        self.module = module
        self.run = (logits,)  # if it is the module itself, that must not be there twice

    def forward(self, pixels: Tensor) -> Tensor:
        return self.run[0](pixels)


class _Bernoulli:
    """Which numbers of each weight are restored: independent draws, made by the gaps between them."""

    def __init__(self, probability: float, seed: int) -> None:
        self.probability, self.generator = probability, torch.Generator().manual_seed(seed)

    def __call__(self, name: str, weight: Tensor) -> Bool[Tensor, ...]:
        mask = torch.zeros(weight.numel(), dtype=torch.bool)
        if self.probability >= 1:
            mask.fill_(True)
        elif self.probability > 0:
            mask[self._places(weight.numel())] = True
        return mask.view(weight.shape).to(weight.device)

    def _places(self, n: int) -> Tensor:
        """Positions in 0..n-1, each there with the probability: gaps between them are geometric."""
        expected = n * self.probability
        count, parts, last = int(expected + 6 * math.sqrt(expected) + 16), [], -1
        while last < n:
            u = torch.rand(count, generator=self.generator, dtype=torch.float64)
            gaps = (u.neg().log1p() / math.log1p(-self.probability)).floor().long() + 1
            parts.append(last + gaps.cumsum(0))
            last = int(parts[-1][-1])
        places = torch.cat(parts)
        return places[places < n]


def _augmented(pixels: Tensor, number: int, *, seed: int) -> Tensor:
    return augment(pixels, torch.Generator().manual_seed(key_seed("copy", seed, number)))


def _require_range(pixels: Tensor) -> None:
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise DataError(f"pixels between {low:g} and {high:g}", where="CoTTA's augmentations", expected="0 to 1")
