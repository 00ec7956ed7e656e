"""Fresh weights from a seed, and weights from a file, for small networks.

Knows state dicts. Does not know any network, and never unpickles objects.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perdure.errors import WeightsError


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
    faults += [
        f"{key} is {list(state[key].shape)}, here {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise WeightsError(
            "; ".join(faults[:3]) + more, where=str(path), todo="Set width, stages and classes as in training."
        )
    net.load_state_dict(state)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as fault:
        raise WeightsError(
            f"cannot be read as weights ({type(fault).__name__})",
            where=str(path),
            expected="a state dict of tensors",
        ) from fault
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not (isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values())):
        raise WeightsError("holds something else", where=str(path), expected="a state dict of tensors")
    return state
