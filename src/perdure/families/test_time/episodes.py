"""Episodes on any parameters: a few steps down a loss, an answer, and the weights as they were.

Knows parameters, a loss and an answer as functions. Does not know what they compute: retrieval queries and captions
are adapted to by the same few lines. Each part of the parameters takes its step as soon as the backward pass has made
its gradients, while they are in the processor's cache, and gives them up: a fresh 0.35 GB of them in every step cost
more than the arithmetic of one image. Within autocast its cache of low-precision weights is emptied whenever weights
move; in float16 losses are scaled, since small gradients would vanish.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from perdure.families.test_time.half import loss_scale, unscale
from perdure.families.test_time.prompt_tuning import Steps, Trace

Answer = TypeVar("Answer")


class Episodes:
    """Runs one episode after another, each with a fresh optimizer.

    Args:
        state: tensors that an episode may change, by name; put back in place after each.
        tuned: what the optimizer moves: parts of `state`, or leaves that the caller fills before each episode.
        slow: where episodes start, if that changes from sample to sample.
        stacked: the first axis of `tuned` is one of samples, side by side.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        tuned: Mapping[str, Tensor],
        steps: Steps,
        *,
        slow: SlowStart | None = None,
        stacked: bool = False,
    ) -> None:
        self.stacked = stacked
        self.state, self.tuned, self.steps, self.slow = dict(state), dict(tuned), steps, slow
        self.first = {n: t.detach().clone() for n, t in self.state.items()}
        self.parts = [
            torch.optim.AdamW(part, lr=steps.lr, weight_decay=steps.weight_decay, eps=steps.eps, fused=True)
            for part in _parts(list(self.tuned.values()))
        ]

    def run(self, loss: Callable[[], Tensor], answer: Callable[[], Answer], *, trace: Trace | None = None) -> Answer:
        """Step down `loss` (or the sum of several), then `answer` without gradients.

        State and optimizer are afterwards as they were.
        """
        if self.slow is not None:
            self._fill(self.slow.start)
        for optimizer in self.parts:  # gradients that somebody left behind would be added to
            optimizer.zero_grad(set_to_none=True)
        try:
            losses = [self._step(loss, trace) for _ in range(self.steps.count)]
            with torch.no_grad():
                found = answer()
            if trace is not None and losses:
                trace.losses.append(torch.stack(losses))
            if self.slow is not None:
                self.slow.update(self.state)
            return found
        finally:
            self._fill(self.first)
            for optimizer in self.parts:
                for entry in optimizer.state.values():
                    torch._foreach_zero_([t for t in entry.values() if isinstance(t, Tensor)])
                optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """Within, the state is as the next episode finds it; changes to it (batch norm counts) are undone."""
        if self.slow is not None:
            self._fill(self.slow.start)
        for optimizer in self.parts:  # gradients that somebody left behind would be added to
            optimizer.zero_grad(set_to_none=True)
        try:
            yield
        finally:
            self._fill(self.first)

    def _step(self, loss: Callable[[], Tensor], trace: Trace | None) -> Tensor:
        with torch.enable_grad():
            value = loss()
        kept: dict[int, Tensor | None] | None = {} if trace is not None and trace.keep_gradients else None
        if value.requires_grad and (scale := loss_scale(value.device)) != 1:
            self._step_scaled(value.sum(), scale, kept)
        elif value.requires_grad:
            with _stepping(self.parts, kept):
                value.sum().backward()
            torch.clear_autocast_cache()
        if trace is not None and kept is not None:
            trace.gradients.append({n: kept.get(id(p)) for n, p in self.tuned.items()})  # type: ignore[arg-type]
        return value.detach()

    def _step_scaled(self, value: Tensor, scale: float, kept: dict[int, Tensor | None] | None) -> None:
        """A step in float16, of all parts at once: whether a gradient has overflowed shows at the end."""
        (value * scale).backward()
        gradients = {id(p): p.grad for p in self.tuned.values() if p.grad is not None}
        unscale(list(gradients.values()), scale, stacked=self.stacked)
        if kept is not None:
            kept.update(gradients)
        for optimizer in self.parts:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        torch.clear_autocast_cache()

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        if self.state:
            torch._foreach_copy_([t.data for t in self.state.values()], [values[n] for n in self.state])
        torch.clear_autocast_cache()


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


LEAST = 1 << 20
"""Min elements per optimizer group; smaller groups are launch-bound."""


def _parts(tuned: list[Tensor]) -> list[list[Tensor]]:
    """The tensors in their order, in groups of at least `LEAST` numbers each."""
    groups: list[list[Tensor]] = [[]]
    for tensor in tuned:
        if sum(t.numel() for t in groups[-1]) >= LEAST:
            groups.append([])
        groups[-1].append(tensor)
    return groups


@contextmanager
def _stepping(parts: list[torch.optim.AdamW], kept: dict[int, Tensor | None] | None) -> Iterator[None]:
    """Within, a part steps when the backward pass has made its last gradient; those without all of theirs, at the end.

    Args:
        kept: receives every gradient, by the tensor's identity.
    """
    handles, waiting = [], {}
    for k, optimizer in enumerate(parts):
        tensors = optimizer.param_groups[0]["params"]
        waiting[k] = len(tensors)
        for tensor in tensors:
            handles.append(tensor.register_post_accumulate_grad_hook(lambda _, k=k: arrived(k)))

    def arrived(k: int) -> None:
        waiting[k] -= 1
        if not waiting[k]:
            step(k)

    def step(k: int) -> None:
        if kept is not None:
            kept.update({id(p): p.grad for p in parts[k].param_groups[0]["params"]})
        parts[k].step()
        parts[k].zero_grad(set_to_none=True)

    try:
        yield
        for k, missing in waiting.items():
            if missing:
                step(k)
    finally:
        for handle in handles:
            handle.remove()
