"""Versions of a run in memory at once: what is the same in both is there once.

Knows models that a method reaches. Does not know what is frozen in a method: equal numbers are shared, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from perdure.runtime.placing import modules


def share(method: Any, other: Any) -> int:
    """Weights and buffers of a method that are equal to another's become the other's own.

    Neither may write into its weights while both are used: nothing is shared by methods that adapt.

    Returns:
        Bytes that are now there once.
    """
    if any(getattr(one, name, False) for one in (method, other) for name in ("adapts", "carries_state")):
        return 0
    known = dict(_tensors(other))
    shared = 0
    for path, tensor in _tensors(method):
        same = known.get(path)
        if same is None or same.data_ptr() == tensor.data_ptr() or not tensor.numel():
            continue
        alike = (same.shape, same.dtype, same.device) == (tensor.shape, tensor.dtype, tensor.device)
        if alike and torch.equal(same, tensor):
            tensor.data = same.data
            shared += tensor.numel() * tensor.element_size()
    return shared


def _tensors(method: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by path, each once."""
    for path, module in modules(method).items():
        yield from ((f"{path}.{name}", parameter) for name, parameter in module.named_parameters())
        yield from ((f"{path}.{name}", buffer) for name, buffer in module.named_buffers())
