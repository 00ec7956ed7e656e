"""Episodes on any parameters: a few steps down a loss, an answer, and the weights as they were.

Knows parameters, a loss and an answer as functions. Does not know what they compute: retrieval queries and captions
are adapted to by the same few lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from perdure.nn.test_time.encoder_tuning import SlowStart
from perdure.nn.test_time.prompt_tuning import Steps, Trace

Answer = TypeVar("Answer")


class Episodes:
    """Runs one episode after another, each with a fresh optimizer.

    Args:
        state: tensors that an episode may change, by name; put back in place after each.
        tuned: what the optimizer moves: parts of `state`, or leaves that the caller fills before each episode.
        slow: where episodes start, if that changes from sample to sample.
    """

    def __init__(
        self, state: Mapping[str, Tensor], tuned: Mapping[str, Tensor], steps: Steps, *, slow: SlowStart | None = None
    ) -> None:
        self.state, self.tuned, self.steps, self.slow = dict(state), dict(tuned), steps, slow
        self.first = {n: t.detach().clone() for n, t in self.state.items()}
        self.optimizer = torch.optim.AdamW(
            list(self.tuned.values()), lr=steps.lr, weight_decay=steps.weight_decay, eps=steps.eps, fused=True
        )

    def run(self, loss: Callable[[], Tensor], answer: Callable[[], Answer], *, trace: Trace | None = None) -> Answer:
        """Step down `loss`, then `answer` without gradients. State and optimizer are afterwards as they were."""
        if self.slow is not None:
            self._fill(self.slow.start)
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
            for entry in self.optimizer.state.values():
                torch._foreach_zero_([t for t in entry.values() if isinstance(t, Tensor)])
            self.optimizer.zero_grad(set_to_none=True)

    def _step(self, loss: Callable[[], Tensor], trace: Trace | None) -> Tensor:
        with torch.enable_grad():
            value = loss()
        self.optimizer.zero_grad(set_to_none=True)
        if value.requires_grad:
            value.backward()
        if trace is not None and trace.keep_gradients:
            trace.gradients.append({n: p.grad for n, p in self.tuned.items()})  # type: ignore[arg-type]
        self.optimizer.step()
        return value.detach()

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        if self.state:
            torch._foreach_copy_([t.data for t in self.state.values()], [values[n] for n in self.state])
