"""A device without enough memory: one message that says where it happened and what to set.

Knows settings that cost memory by their names, and where a runtime stands. Does not know methods or models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from perdure import recipe
from perdure.errors import DeviceMemoryError
from perdure.recipe import Recipe
from perdure.runtime import Runtime
from perdure.settings.inert import moves_no_number

SIZES_IN_TESTS = ("at_once", "chunk", "generate_batch")


@contextlib.contextmanager
def explained(asked: Recipe | None, runtime: Runtime, *, todo: str = "") -> Iterator[None]:
    """A `DeviceMemoryError` in place of torch's error.

    What the run has saved stays; it may go on under settings that move no number, which the message names first.

    Args:
        asked: the run's recipe; None if there is none, or it cannot be changed: then `todo` says what to do.
    """
    try:
        yield
    except torch.OutOfMemoryError as fault:
        kept = " What it has saved is kept; the same command goes on from there." if runtime.out is not None else ""
        raise DeviceMemoryError(
            f"the device {runtime.device} has too little memory{_use(runtime.device)} for {_place(runtime)}",
            where=str(runtime.out or ""),
            todo=(_settings(asked, runtime) if asked is not None else todo) + kept,
        ) from fault


def _settings(asked: Recipe, runtime: Runtime) -> str:
    return _advice(recipe.flat(recipe.resolved(asked)), testing=runtime.stage.startswith("test "))


def _place(runtime: Runtime) -> str:
    batch = f", batches of {runtime.batch_size}" if runtime.batch_size else ""
    if runtime.task < 0 and not runtime.stage.startswith("test "):  # `perdure predict`
        return f"stage predict{batch}"
    return f"task {runtime.task + 1}, stage {runtime.stage}{batch}" if runtime.stage else f"task {runtime.task + 1}"


def _use(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    return f" ({free / 2**30:.1f} of {total / 2**30:.1f} GiB are free)"


def _advice(settings: Mapping[str, Any], *, testing: bool) -> str:
    """What to set: first what moves no number."""
    same, other = [], []
    for name, value in settings.items():
        key = name.rpartition(".")[2]
        if key == "accumulate" and not testing:
            change = f"{name}={2 * value}"
        elif _is_size(name, testing=testing) and value > 1:
            change = f"{name}={value // 2}"
        else:
            continue
        (same if moves_no_number(name, settings) else other).append(change)
    other += ["run.precision=bf16"] if settings["run.precision"] == "float32" else []
    parts = [f"Set {' or '.join(same)}, with which this run goes on to the same numbers."] if same else []
    parts += [f"Or make another run (run.name=...) with {' or '.join(other)}."] if other else []
    return " ".join(parts) or "Take a device with more memory."


def _is_size(name: str, *, testing: bool) -> bool:
    """How much is worked on at once, in tests or in training."""
    if name == "evaluate.batch_size":
        return testing
    key = name.rpartition(".")[2]
    return name.startswith("method.") and (key in SIZES_IN_TESTS if testing else key.endswith("batch_size"))
