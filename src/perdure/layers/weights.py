"""Fresh weights from a seed, and weights from a file, for small networks.

Knows state dicts. Does not know any network, and never unpickles objects.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from perdure.errors import WeightsError

_BROKEN = (
    *(SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError),
    *(KeyError, IndexError, TypeError, AttributeError, AssertionError, struct.error),
)
"""What safetensors and torch's restricted unpickler raise over bytes that are no weights."""


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Initialize under `seed` and leave torch's global generator as it was; None draws from that generator."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def load_into(net: nn.Module, path: Path, *, rename: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> None:
    """Load a ``.pth`` (weights only) or ``.safetensors`` state dict into `net`, exactly: no key too many or few.

    Raises:
        WeightsError: absent, unreadable, or of another network; names the first differences.
    """
    if not path.is_file():
        raise WeightsError("no such file", where=str(path))
    state = _read(path)
    state = rename(state) if rename else state
    own = net.state_dict()
    faults = [f"{key} is missing" for key in own if key not in state]
    faults += [f"{key} is not part of this network" for key in state if key not in own]
    for key in (key for key in own if key in state):
        faults += _differences(key, state[key], own[key])
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise WeightsError(
            "; ".join(faults[:3]) + more,
            where=str(path),
            todo="Set its sizes and classes as in training.",
        )
    net.load_state_dict(state)


def _differences(key: str, found: Tensor, own: Tensor) -> Iterator[str]:
    """Why a tensor of a file cannot stand for one of the network."""
    if found.layout != torch.strided or found.is_quantized or found.is_meta:
        yield f"{key} is sparse, quantized or empty of numbers"
    elif found.shape != own.shape:
        yield f"{key} is {list(found.shape)}, here {list(own.shape)}"
    elif found.is_complex() or found.is_floating_point() != own.is_floating_point():
        yield f"{key} is {str(found.dtype).removeprefix('torch.')}, here {str(own.dtype).removeprefix('torch.')}"
    elif found.is_floating_point() and not found.isfinite().all():
        yield f"{key} holds NaN or infinity"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _BROKEN as fault:
        raise WeightsError(
            f"cannot be read as weights ({type(fault).__name__})",
            where=str(path),
            expected="a state dict of tensors",
        ) from fault
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    pairs = state.items() if isinstance(state, dict) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in pairs):
        raise WeightsError("holds something else", where=str(path), expected="a state dict of tensors")
    return state
