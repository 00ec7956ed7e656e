"""The devices that torch sees here: chosen by name or refused, named for a card, seeded, and their peak memory.

Knows torch's CPU, CUDA, XPU and MPS, and what accelerate keeps of them. Does not know runs or models.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch

from perdure.errors import RecipeError


def available() -> list[str]:
    """Names of all devices that torch can use here, the best first."""
    found = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    found += [f"xpu:{i}" for i in range(torch.xpu.device_count())] if torch.xpu.is_available() else []
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def chosen(name: str, *, where: str = "run.device") -> torch.device:
    """The device of a name, made the one in use: ``auto`` is the best, ``cuda`` the present CUDA device.

    Raises:
        RecipeError: torch does not see it here.
    """
    here = available()
    if name == "auto":
        name = here[0]
    elif name in ("cuda", "xpu"):
        name = next((n for n in here if n.startswith(f"{name}:")), name)
    if name not in here:
        raise RecipeError(
            f"the device {name} is not there", where=where, expected=", ".join(here), todo=f"Set {where}={here[0]}."
        )
    device = torch.device(name)
    if device.index is not None:
        _module(device).set_device(device)
    return device


def set_for_accelerate(asked: str) -> bool:
    """Tell accelerate the device that was asked for; whether it is the CPU.

    Among several processes accelerate gives each its own, of the kind asked for.

    Raises:
        RecipeError: it is not there, or is not what the processes were given.
    """
    # Before there is a group: imported later, its functions' defaults would hold the group until the interpreter ends.
    import torch.distributed.nn.functional
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    if asked == "auto" and parse_flag_from_env("ACCELERATE_USE_CPU"):
        asked = "cpu"
    state = PartialState(cpu=asked == "cpu")
    if state.num_processes == 1:  # of itself it keeps the device of a process's first run, and knows no index
        state.device = chosen(asked)
    kind = torch.device(state.device or "cpu").type
    if asked not in ("auto", kind) and state.num_processes > 1:
        raise RecipeError(
            f"run.device is {asked} in {state.num_processes} processes, each of which has its own",
            expected=f"auto or {kind}",
        )
    return kind == "cpu"


def full_name(device: torch.device) -> str:
    """What a result card calls a device."""
    if device.type in ("cuda", "xpu"):
        return _module(device).get_device_name(device)
    if device.type == "mps":
        return f"Apple GPU (mps), {platform.machine()}"
    return f"CPU {platform.machine()}, {torch.get_num_threads()} threads"


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that torch held on a device; on MPS what its driver holds now, which only grows. None for a CPU."""
    if device.type in ("cuda", "xpu"):
        return _module(device).max_memory_allocated(device)
    return torch.mps.driver_allocated_memory() if device.type == "mps" else None


def seed_torch(seed: int) -> None:
    """Seed torch's global generators of the CPU and of the devices in use.

    `torch.manual_seed` does the same, but formats stack traces for devices that are not there: 4 ms, too much for
    every sample."""
    torch.default_generator.manual_seed(seed)
    for seeded in _seeders():
        seeded(seed)


@contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """Context that leaves the global generators of the CPU and of a device as they were."""
    if device.type == "mps":
        state = torch.mps.get_rng_state()
        with torch.random.fork_rng(devices=[]):
            yield
        torch.mps.set_rng_state(state)
        return
    others = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices=others, device_type="cuda" if device.type == "cpu" else device.type):
        yield


@cache
def _seeders() -> list[Callable[[int], None]]:
    kinds = {name.partition(":")[0] for name in available()}
    made = {"cuda": torch.cuda.manual_seed_all, "xpu": torch.xpu.manual_seed_all, "mps": torch.mps.manual_seed}
    return [make for kind, make in made.items() if kind in kinds]


def _module(device: torch.device) -> ModuleType:
    return torch.get_device_module(device)
