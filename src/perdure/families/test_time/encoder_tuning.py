"""Episodes that tune the image encoder to each test image, and put it back.

Knows parameters, their start, batch-norm statistics and an objective. Does not know where views or rewards come from.

Views are selected without gradients; only the selected ones are run with them. Weights and optimizer are put back in
place after every episode; `at_once` images have weights of their own and run as one batch. Batch norm in training mode
looks at all views at once, so there the first step must run all of them, image by image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families.clip import classifier
from perdure.families.test_time import views
from perdure.families.test_time.episodes import Episodes, SlowStart
from perdure.families.test_time.losses import Objective, select_views, take_views
from perdure.families.test_time.prompt_tuning import Answer, Steps, Trace
from perdure.families.test_time.stacked import StackedEncoder, adapt_together
from perdure.types import Batch

if TYPE_CHECKING:
    from perdure.models.clip import Clip

Encode = Callable[[Float[Tensor, "images 3 height width"]], Float[Tensor, "images dim"]]
Tuned = Literal["all", "norm"]
"""Parameters of the image tower that move: all, or those of its normalisation layers."""


def tunable(clip: Clip, which: Tuned) -> dict[str, nn.Parameter]:
    """Parameters of the image tower that an episode moves, by name; only they get gradients from now on.

    As in the published code, the batch norms within a ResNet's shortcuts are not among the `norm`s.
    """
    clip.requires_grad_(False)
    norms = re.compile(r"norm|layrnorm|\.bn\d")
    chosen = {n: p for n, p in clip.visual_parameters().items() if which == "all" or norms.search(n)}
    for parameter in chosen.values():
        parameter.requires_grad_()
    return chosen


def visual_state(clip: Clip) -> dict[str, Tensor]:
    """Parameters and buffers of the image tower, by name: all that an episode may change."""
    state = clip.model.state_dict(keep_vars=True)
    return {n: t for n, t in state.items() if n.startswith(("vision_model.", "visual_projection."))}


class Settings(Protocol):
    """What a method on the image encoder says about its episodes; see `perdure.methods.rlcf_encoder.Config`."""

    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def selection(self) -> float: ...
    @property
    def prior_strength(self) -> float | None: ...
    @property
    def momentum(self) -> float | None: ...
    @property
    def update_every(self) -> int: ...
    @property
    def update_share(self) -> float: ...
    @property
    def answer(self) -> Answer: ...
    @property
    def at_once(self) -> int: ...
    @property
    def chunk(self) -> int: ...


Prepare = Callable[[Tensor, Int[Tensor, "images kept"], list[int]], Sequence[Objective]]
"""Normalised views, indices of the selected ones, seeds of the images -> one objective an image."""


def encoder_predictor(
    clip: Clip, prompts: Sequence[str], tuned: Mapping[str, nn.Parameter], settings: Settings, prepare: Prepare
) -> Callable[[Batch], Float[Tensor, "images classes"]]:
    """A method's function of a batch of views (see `views.preprocess`): each image is adapted to, then answered.

    Args:
        prompts: one a class.
    """
    tuner = encoder_tuner(clip, classifier.encode_prompts(clip, prompts), tuned, settings)

    def answer(pixels: Tensor, seeds: list[int]) -> Tensor:
        return tuner.logits(pixels, lambda index: prepare(pixels, index, seeds))

    return lambda batch: views.in_parts(batch, clip.transform, tuner.at_once, answer)


def encoder_tuner(
    clip: Clip, texts: Float[Tensor, "classes dim"], tuned: Mapping[str, nn.Parameter], settings: Settings
) -> EncoderTuner:
    """The tuner of a CLIP's image tower; see `EncoderTuner` and `SlowStart`."""
    state = visual_state(clip)
    slow = None
    if settings.momentum is not None:
        slow = SlowStart(state, momentum=settings.momentum, every=settings.update_every, share=settings.update_share)
    return EncoderTuner(
        state,
        clip.image_features,
        tuned,
        texts,
        Steps(count=settings.steps, lr=settings.lr, weight_decay=settings.weight_decay),
        scale=clip.scale.detach(),
        selection=settings.selection,
        norms=[m for m in clip.model.vision_model.modules() if isinstance(m, nn.BatchNorm2d)],
        prior_strength=settings.prior_strength,
        slow=slow,
        answer=settings.answer,
        chunk=settings.chunk,
        at_once=settings.at_once,
        module=clip.model,
    )


class EncoderTuner:
    """Answers for images, each after an episode that tunes some parameters of the image encoder.

    Args:
        state: parameters and buffers that an episode may change, by name; they are put back in place.
        encode: normalised pixels -> features, not normalised.
        tuned: the parameters that the optimizer moves, a part of `state`.
        texts: unit features of the classes.
        selection: share of the views that are kept.
        norms: batch norms of the encoder.
        prior_strength: blend running and batch statistics of batch norms; None: plain training mode.
        slow: where episodes start, if that changes from sample to sample.
        chunk: views that are encoded at a time where no gradient is needed.
        at_once: images that are adapted to side by side, with weights of their own; 1 where batch norm looks at a
            batch, and where each start depends on the sample before.
        module: what `encode` runs and `tuned` are named in; needed for more than one at once.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        encode: Encode,
        tuned: Mapping[str, nn.Parameter],
        texts: Float[Tensor, "classes dim"],
        steps: Steps,
        *,
        scale: Float[Tensor, ""],
        selection: float,
        norms: Sequence[nn.BatchNorm2d] = (),
        prior_strength: float | None = None,
        slow: SlowStart | None = None,
        answer: Answer = "plain",
        chunk: int = 256,
        at_once: int = 1,
        module: nn.Module | None = None,
    ) -> None:
        self.encode, self.tuned, self.texts, self.steps = encode, tuned, texts, steps
        self.scale, self.selection, self.prior = scale, selection, prior_strength
        self.norms, self.answer, self.chunk = list(norms), answer, chunk
        self.episodes = Episodes(state, tuned, steps, slow=slow)
        self.at_once = 1 if self.norms or slow is not None else at_once
        if self.at_once > 1:
            assert module is not None
            self.stacked = StackedEncoder(module, encode, texts, scale=scale)

    def logits(
        self,
        pixels: Float[Tensor, "images views 3 height width"],
        prepare: Callable[[Int[Tensor, "images kept"]], Sequence[Objective]],
        *,
        trace: Trace | None = None,
    ) -> Float[Tensor, "images classes"]:
        """Answers to a few images. Weights and optimizer are afterwards as they were.

        Args:
            prepare: indices of the selected views -> one objective an image.
        """
        assert self.episodes.slow is None or len(pixels) == 1, "each start depends on the sample before"
        with torch.no_grad(), self.episodes.at_start(), self._training():
            index = torch.stack([select_views(self._all_scores(views), self.selection) for views in pixels])
        objectives = prepare(index)
        if self.at_once > 1 and len(pixels) > 1:
            return self._together(pixels, index, objectives)
        episodes = zip(pixels, index, objectives, strict=True)
        return torch.cat([self._episode(*episode, trace) for episode in episodes])

    def _episode(self, views: Tensor, chosen: Tensor, objective: Objective, trace: Trace | None) -> Tensor:
        """One image: steps on the selected views, and the answer."""
        kept, steps = views[chosen], count()

        def loss() -> Tensor:
            everything = next(steps) == 0 and bool(self.norms)
            with self._training():
                logits = self._scores(views)[chosen] if everything else self._scores(kept)
            return objective(logits[None])[0]

        def answer() -> Tensor:
            return self._scores(views[:1] if self.answer == "plain" else kept).mean(0, keepdim=True)

        return self.episodes.run(loss, answer, trace=trace)

    def _together(self, pixels: Tensor, index: Tensor, objectives: Sequence[Objective]) -> Tensor:
        """Several images side by side."""
        kept = take_views(pixels, index)
        weights = adapt_together(self.stacked, self.tuned, kept, objectives, self.steps)
        with torch.no_grad():
            return self.stacked.scores(weights, pixels[:, :1] if self.answer == "plain" else kept).mean(1)

    def _all_scores(self, views: Tensor) -> Tensor:
        """Of all views of an image, in chunks (batch norm must see them together)."""
        parts = [views] if self.norms else views.split(self.chunk)
        return torch.cat([self._scores(part) for part in parts])

    def _scores(self, pixels: Tensor) -> Tensor:
        return self.scale * F.normalize(self.encode(pixels), dim=-1) @ self.texts.T

    @contextmanager
    def _training(self) -> Iterator[None]:
        """Batch norm as in training (blended with the running statistics if there is a prior); nothing else changes."""
        if not self.norms:
            yield
            return
        for norm in self.norms:
            if self.prior is None:
                norm.train()
            else:
                norm.forward = lambda x, norm=norm: blended_batch_norm(x, norm, self.prior)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for norm in self.norms:
                norm.eval()
                norm.__dict__.pop("forward", None)


def blended_batch_norm(
    x: Float[Tensor, "images channels height width"], norm: nn.BatchNorm2d, prior_strength: float
) -> Float[Tensor, "images channels height width"]:
    """Batch norm with ``p running + (1 - p) batch`` statistics, ``p = s / (s + 1)``; the batch variance is unbiased.

    As in the published code, no gradient flows through the statistics.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    p = prior_strength / (prior_strength + 1)
    variance, mean = torch.var_mean(x.detach(), dim=(0, 2, 3), correction=1)
    return F.batch_norm(
        x,
        p * norm.running_mean + (1 - p) * mean,
        p * norm.running_var + (1 - p) * variance,
        norm.weight,
        norm.bias,
        training=False,
        eps=norm.eps,
    )
