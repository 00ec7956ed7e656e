"""Normalisation layers of a classifier that adapts at test time: which move, and whose statistics they use.

Knows modules. Does not know losses, optimizers or what a classifier is for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from torch import nn

from perdure.errors import RecipeError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Statistics = Literal["batch", "stored"]
"""Of batch norms: those of the test batch, or those of training."""
PUBLISHED_TOP = ("layer4", "blocks.9", "blocks.10", "blocks.11", "norm.")
"""Parts of names of layers that SAR's published code leaves out; with any, a layer called `norm` is left out, too."""
FEWEST = 4
"""Fewest blocks of a stack that has a top quarter."""


def norm_parameters(module: nn.Module, *, skip: Sequence[str] | None = ()) -> dict[str, nn.Parameter]:
    """Weights and biases of normalisation layers, by name, in the module's order.

    Args:
        skip: leave out layers whose name holds one of these; None: the top ones (`top_layers`).

    Raises:
        RecipeError: no such layer is left.
    """
    top = top_layers(module) if skip is None else {n for n, _ in _norms(module) if _is_named(n, skip)}
    found = {
        f"{name}.{kind}" if name else kind: parameter
        for name, layer in _norms(module)
        if name not in top
        for kind, parameter in layer.named_parameters(recurse=False)
    }
    if not found:
        raise RecipeError(
            "the model has no normalisation layer that may move",
            where="method",
            expected="batch, group or layer norms with weights",
        )
    return found


def top_layers(module: nn.Module) -> set[str]:
    """Names of the normalisation layers near the output: in the last quarter of the longest stack of blocks, in a
    fourth stage (`layer4`, `stage4`), and the last one after the blocks."""
    stacks = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    name, stack = max(stacks, key=lambda pair: len(pair[1]), default=("", nn.Sequential()))
    keys = list(stack._modules)
    quarter = len(keys) // FEWEST
    heads = [f"{name}.{key}.".lstrip(".") for key in keys[len(keys) - quarter :]]
    norms = [n for n, _ in _norms(module)]
    top = {n for n in norms if any(n.startswith(head) for head in heads) or re.search(r"(^|\.)(layer|stage)4\.", n)}
    inside = f"{name}.".lstrip(".")
    if norms and keys and not norms[-1].startswith(inside) and any(n.startswith(inside) for n in norms):
        top.add(norms[-1])
    return top


def follow(module: nn.Module, statistics: Statistics) -> None:
    """Evaluation mode (no dropout), in which batch norms use these statistics; the stored ones stay as they are."""
    module.eval()
    for layer in module.modules():
        if isinstance(layer, BATCH_NORMS) and statistics == "batch":
            layer.training, layer.track_running_stats = True, False


def has_batch_norm(module: nn.Module) -> bool:
    """Whether answers to a batch hang on all of its images."""
    return any(isinstance(layer, BATCH_NORMS) for layer in module.modules())


def explained(module: nn.Module, images: int, fault: ValueError) -> RecipeError:
    """What a batch norm says of a batch in which a channel has one value."""
    layer = next((n for n, m in _norms(module) if isinstance(m, BATCH_NORMS)), "")
    return RecipeError(
        f"batch norm ({layer} or a later one) sees one value a channel in a batch of {images}: {fault}",
        where="method.batch_size",
        expected="more images, or a model with layer or group norms",
    )


def _norms(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((n, m) for n, m in module.named_modules() if isinstance(m, NORMS))


def _is_named(name: str, parts: Sequence[str]) -> bool:
    return bool(parts) and (name == "norm" or any(part in name for part in parts))
