"""A classifier whose weights change from batch to batch of a test set: what TENT, EATA, SAR and CoTTA share.

Knows a function that makes logits, the weights that move, where they began, and an optimizer. Does not know losses.
`OnBatches` is the method without its own part: a zero-shot CLIP or a plain network, test set after test set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.errors import RecipeError
from perdure.families import rehearsal
from perdure.families.clip import classifier
from perdure.families.test_time import frozen, norms, objectives
from perdure.families.test_time.carrying import Carries
from perdure.families.test_time.half import loss_scale, unscale
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task

Logits = Callable[[Tensor], Float[Tensor, "images classes"]]


@dataclass(frozen=True, kw_only=True)
class Descent:
    """The optimizer that moves weights."""

    optimizer: Literal["adam", "sgd"]
    lr: float
    momentum: float = 0.9
    nesterov: bool = False

    def over(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        """A fresh one."""
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.lr, betas=(0.9, 0.999))
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


class Weights:
    """The weights that move, where they began, and their optimizer.

    Args:
        tuned: by name; changed in place.
        first: their values at the start; a copy of them as they are, by default.
    """

    def __init__(
        self, tuned: Mapping[str, Tensor], descent: Descent, *, first: Mapping[str, Tensor] | None = None
    ) -> None:
        self.tuned, self.descent = dict(tuned), descent
        self.first = {n: (t if first is None else first[n]).detach().clone().to(t.device) for n, t in tuned.items()}
        self.optimizer = descent.over(list(self.tuned.values()))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.tuned.values())).device

    def restore(self, *, optimizer: bool = True) -> None:
        """The weights as they began; the optimizer, too, unless it is to keep what it remembers."""
        self.fill(self.first)
        if optimizer:
            self.optimizer = self.descent.over(list(self.tuned.values()))

    @torch.no_grad()
    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Put these values in the weights' place."""
        torch._foreach_copy_([t.data for t in self.tuned.values()], [values[n] for n in self.tuned])
        torch.clear_autocast_cache()

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """Of the weights, in their order; 0 where the loss does not know one."""
        scale = loss_scale(loss.device)
        parameters = list(self.tuned.values())
        found = torch.autograd.grad(loss * scale, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]
        if scale != 1:
            unscale(gradients, scale, stacked=False)
        return gradients

    def step(self, gradients: list[Tensor]) -> None:
        """One step of the optimizer."""
        for parameter, gradient in zip(self.tuned.values(), gradients):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        torch.clear_autocast_cache()

    def state_dict(self) -> dict[str, Any]:
        return {"weights": {n: t.detach() for n, t in self.tuned.items()}, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.fill(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])


class Stepper(Protocol):
    """Answers batch after batch, and changes between."""

    logits: Logits

    def answer(self, pixels: Tensor, seeds: list[int]) -> Float[Tensor, "images classes"]: ...
    def restore(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class OnBatches(Carries):
    """A test-time method that changes weights batch by batch: its own part is `tunable` and `stepper`.

    `test_batch` is how many images a batch holds, whatever `evaluate.batch_size` says: answers depend on it.
    """

    adapts = True
    carries_state = True
    scores_are = "logits"

    def __init__(self, config: Any, clip: Clip | None, net: nn.Module | None) -> None:
        if (clip is None) == (net is None):
            found = "no model" if clip is None else "two models"
            raise RecipeError(found, where="models", expected="`clip`, or `net` for a plain classifier")
        self.config, self.clip, self.net = config, clip, net
        self.module: nn.Module = clip.model if clip is not None else net  # type: ignore[assignment]
        self.module.requires_grad_(False)
        if clip is not None:
            classifier.check_template(config.template)
        self.test_batch = config.batch_size
        self.tuned = self.tunable()
        for parameter in self.tuned.values():
            parameter.requires_grad_()
        self.first = {n: p.detach().clone() for n, p in self.tuned.items()}
        self.carried: Stepper | None = None
        self.before: Mapping[str, Any] | None = None
        """With `continual`: the state with which the next test set begins, where a run was resumed."""

    def tunable(self) -> dict[str, nn.Parameter]:
        """The weights that move, by name."""
        return visual_norms(self.module, self.clip, skip=())

    def stepper(self, logits: Logits, classes: int) -> Stepper:
        """What answers and changes, with the weights as they began."""
        raise NotImplementedError

    def preprocess(self, example: Example, training: bool) -> Batch:
        if self.clip is not None:
            return {"image": self.clip.transform.pixels(example.inputs["image"])}
        transform = getattr(self.net, "transform", None)  # networks of one image size bring their own
        if transform is None:
            return rehearsal.preprocess(example, training)
        return {"image": transform.pixels(example.inputs["image"])}

    def learn(self, task: Task, runtime: Runtime) -> None:
        """Nothing is learned; settings without effect are said once."""
        if task.index == 0:
            for text in self.remarks(len(task.candidates)):
                runtime.say(text)

    def remarks(self, classes: int) -> Iterator[str]:
        """What somebody should know of these settings."""
        if self.config.episodic and self.config.steps == 1:
            yield "episodic with one step: each batch is answered before the step, so that nothing adapts"

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        objectives.require_candidates(query.candidates)
        logits = self.classify(query)
        norms.follow(self.module, getattr(self.config, "statistics", "batch"))
        made = self.stepper(logits, len(query.candidates))
        before = self.before if self.carried is None else self.carried.state_dict()
        if before is not None and self.config.continual:
            made.load_state_dict(before)
        else:
            made.restore()
        self.carried, self.before = made, None

        def predict(batch: Batch) -> Tensor:
            pixels = self.pixels(batch)
            try:
                return made.answer(pixels, batch["seed"].tolist()).detach()
            except ValueError as fault:
                if "more than 1 value per channel" not in str(fault):
                    raise
                raise norms.explained(self.module, len(pixels), fault) from None

        return predict

    def classify(self, query: Query) -> Logits:
        """Pixels in 0..1 -> logits of the query's candidates; class features do not move."""
        clip, net = self.clip, self.net
        if clip is None:
            assert net is not None
            columns = slice(query.offset, query.offset + len(query.candidates))
            return lambda pixels: net(pixels)[:, columns]
        texts = frozen.mean_texts(clip, self.config, query.candidates)
        scale = clip.scale.detach()

        def logits(pixels: Tensor) -> Tensor:
            features = clip.image_features(clip.transform.normalize(255 * pixels))
            return scale * F.normalize(features, dim=-1) @ texts.T

        return logits

    def pixels(self, batch: Batch) -> Float[Tensor, "images channels height width"]:
        """A batch of `preprocess` in 0..1."""
        if self.net is not None:
            return rehearsal.network_input(batch["image"], self.net)
        return batch["image"].float() / 255

    def state_dict(self) -> dict[str, Any]:
        if not self.config.continual:
            return {}
        state = self.before if self.carried is None else self.carried.state_dict()
        return {} if state is None else {"carried": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.carried, self.before = None, state.get("carried")


def visual_norms(module: nn.Module, clip: Clip | None, *, skip: Any) -> dict[str, nn.Parameter]:
    """Normalisation weights of a network, or of a CLIP's image tower."""
    if clip is None:
        return norms.norm_parameters(module, skip=skip)
    tower = clip.model.vision_model
    return {f"vision_model.{n}": p for n, p in norms.norm_parameters(tower, skip=skip).items()}


def default_rate(module: nn.Module, batch_size: int) -> float:
    """SAR's rule of learning rates for SGD, by kind of norm and batch: 0.001 / 64 B with layer norms, else 2.5e-4, and
    2.5e-4 / 64 2B in batches under 32."""
    if any(isinstance(layer, nn.LayerNorm) for layer in module.modules()):
        return 0.001 / 64 * batch_size
    return 2.5e-4 if batch_size >= 32 else 2.5e-4 / 64 * 2 * batch_size


def descent_of(config: Any, module: nn.Module, *, nesterov: bool = False) -> Descent:
    """The optimizer that a config of `settings.NormTuning` names."""
    adam = config.optimizer == "adam"
    lr = config.lr if config.lr is not None else 1e-3 if adam else default_rate(module, config.batch_size)
    return Descent(optimizer=config.optimizer, lr=lr, momentum=config.momentum, nesterov=nesterov)
