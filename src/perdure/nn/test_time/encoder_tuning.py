"""Episodes that tune the image encoder to each test image, and put it back.

Knows parameters, their start, batch-norm statistics and an objective. Does not know where views or rewards come from.

Views are selected without gradients; only the selected ones are run with them. Weights and optimizer are put back in
place after every episode. Batch norm in training mode looks at all views at once, so there the first step must run all
of them, image by image.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.nn.test_time.losses import Objective, select_views
from perdure.nn.test_time.prompt_tuning import Answer, Steps, Trace

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


def encoder_tuner(
    clip: Clip,
    texts: Float[Tensor, "classes dim"],
    tuned: Mapping[str, nn.Parameter],
    steps: Steps,
    *,
    selection: float,
    prior_strength: float | None = None,
    momentum: float | None = None,
    update_every: int = 64,
    update_share: float = 1.0,
    answer: Answer = "plain",
    chunk: int = 256,
) -> EncoderTuner:
    """The tuner of a CLIP's image tower; see `EncoderTuner` and `SlowStart`."""
    state = visual_state(clip)
    slow = None
    if momentum is not None:
        slow = SlowStart(state, momentum=momentum, every=update_every, share=update_share)
    return EncoderTuner(
        state,
        clip.image_features,
        tuned,
        texts,
        steps,
        scale=clip.scale.detach(),
        selection=selection,
        norms=[m for m in clip.model.vision_model.modules() if isinstance(m, nn.BatchNorm2d)],
        prior_strength=prior_strength,
        slow=slow,
        answer=answer,
        chunk=chunk,
    )


class SlowStart:
    """The weights that the next episode starts from, moved slowly towards where episodes have ended.

    After each sample ``slow <- m slow + (1 - m) adapted``; after every `every` of them
    ``start <- (1 - share) first + share slow``.
    """

    def __init__(self, first: Mapping[str, Tensor], *, momentum: float, every: int, share: float) -> None:
        self.first = {n: t.detach().clone() for n, t in first.items()}
        self.slow = {n: t.clone() for n, t in self.first.items()}
        self.start = {n: t.clone() for n, t in self.first.items()}
        self.momentum, self.every, self.share = momentum, every, share
        self.count = 0

    @torch.no_grad()
    def update(self, adapted: Mapping[str, Tensor]) -> None:
        """Take in the weights that one sample ended with. Tensors that are no floats (counters) are left alone."""
        floats = [n for n, t in self.slow.items() if t.is_floating_point()]
        slow = [self.slow[n] for n in floats]
        torch._foreach_mul_(slow, self.momentum)
        torch._foreach_add_(slow, [adapted[n].detach() for n in floats], alpha=1 - self.momentum)
        self.count += 1
        if self.count < self.every:
            return
        self.count = 0
        for n in floats:
            self.start[n] = (1 - self.share) * self.first[n] + self.share * self.slow[n]


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
        slow: where episodes start, if that changes from sample to sample; then images are handed in one by one.
        chunk: views that are encoded at a time where no gradient is needed.
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
    ) -> None:
        self.state, self.encode, self.tuned, self.texts, self.steps = dict(state), encode, tuned, texts, steps
        self.scale, self.selection, self.slow, self.prior = scale, selection, slow, prior_strength
        self.norms, self.answer, self.chunk = list(norms), answer, chunk
        self.first = {n: t.detach().clone() for n, t in self.state.items()}
        self.optimizer = torch.optim.AdamW(
            list(tuned.values()), lr=steps.lr, weight_decay=steps.weight_decay, eps=steps.eps, fused=True
        )

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
        assert self.slow is None or len(pixels) == 1, "each start depends on the sample before"
        self._put_back()
        try:
            with torch.no_grad(), self._training():
                index = torch.stack([select_views(self._all_scores(views), self.selection) for views in pixels])
            self._put_back()
            episodes = zip(pixels, index, prepare(index), strict=True)
            return torch.cat([self._episode(*episode, trace) for episode in episodes])
        finally:
            self._put_back(start=self.first)

    def _episode(self, views: Tensor, chosen: Tensor, objective: Objective, trace: Trace | None) -> Tensor:
        """One image: steps on the selected views, the answer, the state as it was."""
        kept, losses = views[chosen], []
        for step in range(self.steps.count):
            with torch.enable_grad(), self._training():
                everything = bool(self.norms) and step == 0
                logits = self._scores(views)[chosen] if everything else self._scores(kept)
                loss = objective(logits[None])[0]
            self.optimizer.zero_grad(set_to_none=True)
            if loss.requires_grad:
                loss.backward()
            losses.append(loss.detach())
            if trace is not None and trace.keep_gradients:
                trace.gradients.append({n: p.grad for n, p in self.tuned.items()})
            self.optimizer.step()
        with torch.no_grad():
            answer = self._scores(views[:1] if self.answer == "plain" else kept).mean(0, keepdim=True)
        if trace is not None and losses:
            trace.losses.append(torch.stack(losses))
        if self.slow is not None:
            self.slow.update(self.state)
        self._put_back()
        return answer

    def _all_scores(self, views: Tensor) -> Tensor:
        """Of all views of an image, in chunks (batch norm must see them together)."""
        parts = [views] if self.norms else views.split(self.chunk)
        return torch.cat([self._scores(part) for part in parts])

    def _scores(self, pixels: Tensor) -> Tensor:
        return self.scale * F.normalize(self.encode(pixels), dim=-1) @ self.texts.T

    @torch.no_grad()
    def _put_back(self, start: Mapping[str, Tensor] | None = None) -> None:
        """Weights, buffers and optimizer as an episode finds them; all in place."""
        start = start or (self.slow.start if self.slow is not None else self.first)
        torch._foreach_copy_([t.data for t in self.state.values()], [start[n] for n in self.state])
        for entry in self.optimizer.state.values():
            torch._foreach_zero_([t for t in entry.values() if isinstance(t, Tensor)])
        self.optimizer.zero_grad(set_to_none=True)

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
