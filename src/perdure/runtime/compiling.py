"""torch.compile of the layers that a model repeats, in place.

Knows modules, lists of equal layers, and whether a device can compile. Does not know methods, nor what a model is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import nn

from perdure.errors import RecipeError

BACKEND: str | Callable[..., Any] = "inductor"
"""Tests take one that needs no C++ compiler."""
RECOMPILATIONS = 64
"""Most versions of a call, which torch counts for all kinds of layers together; beyond it, layers run as written."""


@cache
def require(device: str, *, sharded: bool = False) -> None:
    """RecipeError if nothing can be compiled for a device ("cpu", "cuda"): a small function is tried, in seconds."""
    if sharded:
        raise RecipeError("run.compile is true in a sharded run", todo="Set run.compile=false.")
    try:
        torch.compile(lambda x: x.sin() + 1, backend=BACKEND)(torch.ones(8, device=device))
    except (RuntimeError, OSError, ImportError, ValueError) as fault:  # torch's own are RuntimeErrors
        inner = getattr(fault, "inner_exception", fault)
        reason = next((line for line in str(inner).splitlines() if line.strip()), type(inner).__name__)
        raise RecipeError(
            f"torch.compile does not work for {device}: {reason.strip()}",
            where="run.compile",
            expected="a C++ compiler and Python's headers, and Triton for a GPU",
            todo="Install them (on Debian: g++ and python3-dev), or set run.compile=false.",
        ) from fault


def compile_layers(module: nn.Module) -> int:
    """Compile each layer that a module repeats, at its first call; the number of those layers.

    Classes, names, parameters and state dicts stay, and copies of a module are not compiled. A layer runs as written
    within `torch.func`'s transforms, and where it is given a cache of keys and values, whose length grows with every
    word.
    """
    import torch._dynamo.config as dynamo

    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILATIONS)
    dynamo.skip_nnmodule_hook_guards = False  # methods set hooks for a while
    found = [layer for layer in dict.fromkeys(layers(module)) if layer._compiled_call_impl is None]
    for layer in found:
        _compile(layer)
    return len(found)


def layers(module: nn.Module) -> Iterator[nn.Module]:
    """Members of lists and sequences of one class, which is not torch's own, that hold no such list themselves.

    A model that says ``never_compiled = True`` has none.
    """
    if getattr(module, "never_compiled", False):
        return
    members = list(module.children())
    equal = isinstance(module, nn.ModuleList | nn.Sequential) and _are_layers(members)
    for member in members:
        own = equal and not getattr(member, "never_compiled", False)
        yield from list(layers(member)) or ([member] if own else [])


def _are_layers(members: list[nn.Module]) -> bool:
    kinds = {type(member) for member in members}
    return len(members) > 1 and len(kinds) == 1 and not kinds.pop().__module__.startswith("torch.nn.")


def _compile(layer: nn.Module) -> None:
    # Dropout draws the same numbers as in a layer that is not compiled.
    layer.compile(backend=BACKEND, options={"fallback_random": True} if BACKEND == "inductor" else None)
    compiled: Any = layer._compiled_call_impl

    def call(*args: Any, **kwargs: Any) -> Any:
        plain = _transformed() or any(hasattr(given, "get_seq_length") for given in (*args, *kwargs.values()))
        return (layer._call_impl if plain else compiled)(*args, **kwargs)

    layer._compiled_call_impl = call  # type: ignore[assignment]


def _transformed() -> bool:
    """Whether a transform of `torch.func` is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # type: ignore[attr-defined]
