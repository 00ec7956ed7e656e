"""One face of an optimizer for the training loop, whether a process holds all of it or a part.

Knows gradients, their sums over processes and their clipping. Does not know losses, schedules or what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Sums = Callable[..., list[Tensor]]
"""``add_gradients(parameters, also=tensors)``: sums over processes, see `Runtime`."""


class Stepper(Protocol):
    """What the loop asks of an optimizer. All processes make the same calls."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """As torch's."""
        ...

    def backward(self, loss: Tensor | None) -> None:
        """Add a loss's gradient to the step's; None: this process has none."""
        ...

    def step(self, also: Sequence[Tensor]) -> list[Tensor]:
        """Sum gradients over processes, clip, step, and leave no gradient behind. Returns the sums of `also`."""
        ...

    def close(self) -> None:
        """Give memory back; the parameters stay as they are."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class WholeOptimizer:
    """An optimizer that each process holds whole.

    Args:
        backward: of a loss, scaled in fp16.
        clip: scales gradients down to a norm, unscaled before in fp16; None for no clipping.
    """

    def __init__(
        self,
        optimizer: Any,
        *,
        backward: Callable[[Tensor], None],
        add_gradients: Sums,
        clip: Callable[[Sequence[Tensor]], Any] | None,
    ) -> None:
        self.optimizer, self._backward, self._add, self._clip = optimizer, backward, add_gradients, clip
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        clear_gradients(optimizer)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def backward(self, loss: Tensor | None) -> None:
        if loss is not None:
            self._backward(loss)

    def step(self, also: Sequence[Tensor]) -> list[Tensor]:
        sums = self._add(self.parameters, also=also)
        if self._clip is not None:
            self._clip(self.parameters)
        self.optimizer.step()
        clear_gradients(self.optimizer)
        return sums

    def close(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


def clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """As its `zero_grad`, without what that does for profilers: some percent of the step of a small network."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
