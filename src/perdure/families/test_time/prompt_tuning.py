"""Episodes that tune a prompt's context to each test image, for several images at once.

Knows contexts, features and an objective. Does not know where views or rewards come from.

Image features are computed once. Text features of the first step depend on no image and are handed in. A step takes
the gradient with respect to text features first, and runs only those prompts with gradients whose gradient is not
zero: with a zero-sum reward these are the sampled classes, a handful among a thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from perdure.families.test_time.half import loss_scale, unscale
from perdure.families.test_time.losses import Objective, select_views, take_views
from perdure.models.clip.prompts import Context, ContextPrompts, name_vectors, shifted

if TYPE_CHECKING:
    from perdure.models.clip import Clip

Answer = Literal["plain", "confident"]
"""Which views the answer is read from: the plain one, or the mean over the selected ones."""
Prepare = Callable[[Int[Tensor, "images kept"]], Objective]
"""Indices of the selected views -> what is minimised."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How an episode goes down: AdamW."""

    count: int
    lr: float
    weight_decay: float
    eps: float = 1e-8


@dataclass
class Trace:
    """What happened in the episodes of a batch of images."""

    losses: list[Float[Tensor, " images"]] = field(default_factory=list)
    """Before each step."""
    gradients: list[Any] = field(default_factory=list)
    """Of the tuned tensors (or a mapping of them by name), by step; filled only if asked for."""
    keep_gradients: bool = False


def tune_prompts(
    prompts: ContextPrompts,
    contexts: Float[Tensor, "images context width"],
    images: Float[Tensor, "images views dim"],
    objective: Objective,
    steps: Steps,
    *,
    scale: Float[Tensor, ""],
    first: Float[Tensor, "images classes dim"] | None = None,
    trace: Trace | None = None,
) -> tuple[Float[Tensor, "images context width"], Float[Tensor, "images classes dim"]]:
    """The adapted contexts, and the text features that they give.

    Args:
        contexts: where each episode starts; not changed.
        images: unit features of the selected views.
        objective: logits ``[images views classes]`` -> one loss an image.
        first: text features at the start, if they are known.
    """
    texts = prompts.features(contexts) if first is None else first
    if steps.count == 0:
        return contexts, texts
    tuned = contexts.detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW([tuned], lr=steps.lr, weight_decay=steps.weight_decay, eps=steps.eps)
    for _ in range(steps.count):
        with torch.enable_grad():
            leaf = texts.detach().requires_grad_()
            losses = objective(scale * images @ leaf.transpose(-1, -2))
            scaled = loss_scale(losses.device)
            (gradient,) = torch.autograd.grad(losses.sum() * scaled, leaf, allow_unused=True)
            tuned.grad = torch.zeros_like(tuned)
            if gradient is not None:
                prompts.backward(tuned, gradient)
            if scaled != 1:
                unscale([tuned.grad], scaled, stacked=True)
        if trace is not None:
            trace.losses.append(losses.detach())
            if trace.keep_gradients:
                trace.gradients.append(tuned.grad.clone())
        optimizer.step()
        texts = prompts.features(tuned)
    return tuned.detach(), texts


def tuner_of(config: Any, clip: Clip, names: Sequence[str], context: Context) -> PromptTuner:
    """A tuner with a config's `steps`, `lr`, `weight_decay`, `selection`, `answer` and `chunk`."""
    steps = Steps(count=config.steps, lr=config.lr, weight_decay=config.weight_decay)
    how = {"selection": config.selection, "answer": config.answer, "chunk": config.chunk}
    return PromptTuner(clip, names, context, steps, **how)


class PromptTuner:
    """Answers for images, each after an episode of its own on one shared list of classes.

    Args:
        names: class names; underscores become spaces.
        context: what episodes begin with.
        selection: share of the views that are kept.
        chunk: prompts, and views, that are encoded at a time.
    """

    def __init__(
        self,
        clip: Clip,
        names: Sequence[str],
        context: Context,
        steps: Steps,
        *,
        selection: float,
        answer: Answer = "plain",
        chunk: int = 256,
        prompts: ContextPrompts | None = None,
    ) -> None:
        self.clip, self.steps, self.selection, self.answer, self.chunk = clip, steps, selection, answer, chunk
        self.prompts = prompts or ContextPrompts.of(clip, names, context.wording, chunk=chunk)
        start = self.prompts.initial() if context.vectors is None else context.vectors.to(clip.device, clip.dtype)
        self.own = start[:0]
        if context.wording.learned_names:
            self.own = name_vectors(names, start.shape[1], seed=context.seed).to(start)
        self.start = torch.cat([start, self.own])
        self.net = context.net.to(clip.device) if context.net else None
        self.first = self.prompts.features(self.start[None]) if self.net is None else None

    def logits(
        self,
        pixels: Float[Tensor, "images views 3 height width"],
        prepare: Prepare,
        *,
        trace: Trace | None = None,
    ) -> Float[Tensor, "images classes"]:
        """Answers to several images, adapted side by side."""
        scale = self.clip.scale.detach()
        with torch.no_grad():
            raw = torch.cat([self.clip.image_features(part) for part in pixels.flatten(0, 1).split(self.chunk)])
            raw = raw.view(*pixels.shape[:2], -1)
            images = F.normalize(raw, dim=-1)
            contexts, first = self._start(raw[:, 0])
            index = select_views(scale * images @ first.transpose(-1, -2), self.selection)
            kept = take_views(images, index)
        _, texts = tune_prompts(
            self.prompts, contexts, kept, prepare(index), self.steps, scale=scale, first=first, trace=trace
        )
        seen = images[:, :1] if self.answer == "plain" else kept
        return (scale * seen @ texts.transpose(-1, -2)).mean(1)

    def _start(self, plain: Tensor) -> tuple[Tensor, Tensor]:
        """Contexts and text features that the episodes of these images begin with."""
        if self.net is None:
            assert self.first is not None
            return self.start.expand(len(plain), -1, -1), self.first.expand(len(plain), -1, -1)
        contexts = shifted(self.start[: self.prompts.length], self.net, plain)
        contexts = torch.cat([contexts, self.own.expand(len(plain), -1, -1)], dim=1)
        return contexts, self.prompts.features(contexts)
