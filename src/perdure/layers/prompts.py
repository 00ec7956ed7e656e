"""Prompts that are chosen or mixed by keys: cosines, votes, layouts, and directions orthogonal to earlier ones.

Knows queries, keys and tables of vectors. Does not know towers, tasks or how anything is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.errors import TrainingError

Layout = Literal["paired", "official"]


def unit(x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
    """x over its length; the squared length is at least 1e-12."""
    return x * (x * x).sum(-1, keepdim=True).clamp_min(1e-12).rsqrt()


def similarities(queries: Float[Tensor, "samples dim"], keys: Float[Tensor, "pool dim"]) -> Tensor:
    """Cosines between queries and keys, ``[samples pool]``."""
    return unit(queries) @ unit(keys).T


def majority(chosen: Int[Tensor, "samples top"], top: int) -> Int[Tensor, " top"]:
    """The `top` most frequent indices, of equally frequent ones the smaller first.

    Where fewer different ones occur, the smallest of them stands for those that lack: ``majority([[2, 4], [4, 4]], 3)``
    is ``[4, 2, 2]``.
    """
    present, counts = chosen.unique(return_counts=True)
    ranked = present[counts.argsort(descending=True, stable=True)][:top]
    return torch.cat([ranked, present[:1].expand(top - len(ranked))])


def lay_out(taken: Float[Tensor, "layers 2 samples length dim"], layout: Layout) -> Tensor:
    """Axes ``[layers samples 2 length dim]``.

    ``paired`` permutes. ``official`` reshapes, as the published code does: sample i then gets part ``2i // samples``
    as keys and ``(2i + 1) // samples`` as values, so that what a sample sees depends on its place in the batch.
    """
    if layout == "paired":
        return taken.transpose(1, 2)
    layers, two, samples, length, dim = taken.shape
    return taken.reshape(layers, samples, two, length, dim)


def orthogonal_rows(
    table: Float[Tensor, "rows dim"], first: int, draw: Callable[[int], Float[Tensor, " dim"]]
) -> Float[Tensor, "rows dim"]:
    """The table with rows from `first` on drawn anew, without their part along all rows before them, of unit length.

    Classical Gram-Schmidt, as CODA-Prompt starts the components of a task (Smith et al. 2023): each draw
    is projected as it was drawn. ``[[2, 0], new]`` with a draw of ``[3, 4]`` becomes ``[[2, 0], [0, 1]]``.

    Args:
        draw: the vector that row k begins as.

    Raises:
        TrainingError: a row before has no direction: more rows than dimensions, or one that training took to 0.
    """
    made = table.clone()
    for row in range(first, len(table)):
        before, drawn = made[:row], draw(row).to(table)
        lengths = (before * before).sum(1)
        if bool((lengths < 1e-8).any()):
            raise TrainingError(
                f"component {int(lengths.argmin())} has no direction of its own left",
                expected=f"at most {table.shape[1]} components of width {table.shape[1]}",
                todo="Set fewer components.",
            )
        made[row] = drawn - ((before @ drawn) / lengths) @ before
    made[first:] = made[first:] / made[first:].norm(dim=1, keepdim=True)
    return made


def not_orthogonal(rows: Float[Tensor, "rows dim"]) -> Float[Tensor, ""]:
    """Mean squared difference of ``rows @ rows.T`` from the identity."""
    return ((rows @ rows.T - torch.eye(len(rows), device=rows.device, dtype=rows.dtype)) ** 2).mean()
