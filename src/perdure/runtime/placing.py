"""Where models lie: one walk over all that a method reaches, and the one move to the run's device.

Knows modules, and objects that hold them. Does not know methods by name, nor what a model is for. A model whose
weights processes share out is placed by `sharding`, when it is known what of it is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn

from perdure.runtime import Runtime
from perdure.runtime.compiling import compile_layers

_PLAIN = (str, bytes, int, float, complex, type(None), type, torch.Tensor, torch.device, torch.dtype)


def place(method: Any, runtime: Runtime) -> None:
    """Move every model that a method reaches to the run's device. Parameters stay the objects that they are.

    In a sharded run a model that says ``sharded_by_stage = True`` is left where it is. Where the run asks for it, the
    layers that models repeat are compiled in place.
    """
    for module in modules(method).values():
        if not (runtime.sharded and getattr(module, "sharded_by_stage", False)):
            module.to(runtime.device)
        if runtime.compile:
            runtime.compiled_layers += compile_layers(module)


def modules(method: Any) -> dict[str, nn.Module]:
    """The outermost modules that a method reaches, by path: ``reward.models[1]``.

    Looks into attributes, lists, tuples, sets, dicts, dataclasses and plain objects, whose classes come from perdure
    or from a package of the method's own; not into closures, nor into examples.
    """
    ours = {"perdure", *(kind.__module__.partition(".")[0] for kind in type(method).__mro__[:-1])}
    found: dict[str, nn.Module] = {}
    _look(method, "", ours, set(), found)
    return found


def off(method: Any, device: torch.device) -> list[str]:
    """Parameters and buffers that are not on a device, by path."""
    return [
        f"{path}.{name}".lstrip(".")
        for path, module in modules(method).items()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if tensor.device != device
    ]


def _look(thing: Any, path: str, ours: set[str], seen: set[int], found: dict[str, nn.Module]) -> None:
    if isinstance(thing, _PLAIN) or id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module) and path:
        seen |= {id(module) for module in thing.modules()}
        found[path] = thing
    for name, held in _held(thing, ours):
        _look(held, f"{path}{name}".lstrip("."), ours, seen, found)


def _held(thing: Any, ours: set[str]) -> Iterator[tuple[str, Any]]:
    """What a thing holds, and how it is reached from there."""
    if isinstance(thing, Mapping):
        yield from ((f"[{key!r}]", value) for key, value in thing.items())
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from ((f"[{i}]", value) for i, value in enumerate(thing))
    elif isinstance(thing, partial):
        yield from _held((thing.func, *thing.args, *thing.keywords.values()), ours)
    elif isinstance(thing, MethodType):
        yield ".__self__", thing.__self__
    elif type(thing).__module__.partition(".")[0] in ours and type(thing).__module__ != "perdure.types":
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        own = {name: getattr(thing, name) for name in slots if hasattr(thing, name)} | getattr(thing, "__dict__", {})
        yield from ((f".{name}", value) for name, value in own.items())
