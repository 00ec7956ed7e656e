"""Numbers that are drawn for each example of a batch from the example's own seed.

Knows seeds, which every batch carries (`loading`), and generators. Does not know what the numbers decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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
