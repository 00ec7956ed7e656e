"""Numbers that are drawn for each example of a batch from the example's own seed; an order of classes in bursts.

Knows seeds, which every batch carries (`loading`), and generators. Does not know what the numbers decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perdure.keys import key_seed


def uniforms(
    seeds: Iterable[int], *shape: int, of: tuple[Any, ...], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "examples ..."]:
    """Numbers in [0, 1) on the CPU, the same for an example whatever its batch mates are.

    Args:
        seeds: one an example: ``batch["seed"]``.
        shape: of one example's numbers.
        of: what they are for.
    """
    drawn = [
        torch.rand(*shape, generator=torch.Generator().manual_seed(key_seed(of[0], int(seed), *of[1:])), dtype=dtype)
        for seed in seeds
    ]
    return torch.stack(drawn)


def in_bursts(targets: Sequence[Any], concentration: float, *, seed: int) -> list[int]:
    """Positions in an order in which classes come in bursts: with C classes, each class is spread over C stretches in
    shares drawn from Dirichlet(concentration); stretches come in a random order, and so does what is in one."""
    draw = np.random.default_rng(seed)
    places: dict[Any, list[int]] = {}
    for position, target in enumerate(targets):
        places.setdefault(target, []).append(position)
    stretches: list[list[int]] = [[] for _ in places]
    for target in sorted(places, key=str):
        found = draw.permutation(places[target])
        shares = draw.dirichlet([concentration] * len(stretches))
        ends = np.rint(np.cumsum(shares) * len(found)).astype(int)
        for stretch, part in zip(stretches, np.split(found, ends[:-1])):
            stretch += part.tolist()
    return [int(p) for k in draw.permutation(len(stretches)) for p in draw.permutation(stretches[k])]
