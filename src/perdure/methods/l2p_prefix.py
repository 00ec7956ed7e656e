"""L2P as the code of CODA-Prompt has it (L2P++): a pool of prefixes with keys, in one block or several.

Wang et al., L2P, CVPR 2022, in the form that Smith et al., CODA-Prompt, CVPR 2023, compare with: chosen prompts stand
before keys and values in place of the tokens, and the class token is the feature.

Needs: 16 GB GPU memory for ViT-B/16 and 128 images a batch.

Knows a pool a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from perdure.errors import RecipeError
from perdure.families.class_incremental import coda, heads, prompting
from perdure.layers.prompts import similarities
from perdure.models.vit import Vit
from perdure.runtime import Runtime
from perdure.types import Task


@dataclass(frozen=True, kw_only=True)
class Config(coda.Settings):
    """Settings of this form of L2P."""

    pool: Annotated[int, Field(ge=1)] = 30
    """Prompts a block."""
    top_k: Annotated[int, Field(ge=1)] = 5
    """Prompts an image takes."""
    length: coda.Length = 20
    """Vectors of a prompt, the first half for keys."""
    blocks: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    """Blocks with a pool, counted from 0. Published also: 0 to 4."""

    def faults(self):
        if self.top_k > self.pool:
            yield "top_k", f"takes {self.top_k} of a pool of {self.pool}"


class PrefixPool(nn.Module):
    """Of one block: `vectors` ``[pool length dim]`` and `keys` ``[pool dim]``."""

    def __init__(self, pool: int, length: int, dim: int) -> None:
        super().__init__()
        self.vectors, self.keys = nn.Parameter(torch.zeros(pool, length, dim)), nn.Parameter(torch.zeros(pool, dim))


class L2pPrefix(coda.Prompted):
    """State: a pool a block, and the head."""

    Config = Config
    answers = frozenset({"classify"})

    def __init__(self, config: Config, *, vit: Vit) -> None:
        prompting.check_blocks({"blocks": config.blocks}, vit)
        pools = {str(block): PrefixPool(config.pool, config.length, vit.dim) for block in config.blocks}
        super().__init__(config, vit, nn.ModuleDict(pools).to(vit.dtype), heads.uniform(vit.dim))

    def begin(self, task: Task, runtime: Runtime) -> None:
        if runtime.processes > 1:
            raise RecipeError("the keys' loss is a sum over a step's images", expected="one process")

    def forward(self, pixels: Tensor, queries: Tensor, task: int | None) -> tuple[Tensor, Tensor | float]:
        """The published loss of keys counts every image against the choices of every other."""
        prefixes, penalty = {}, 0.0
        for block, pool in self.prompts.items():
            cosines = similarities(queries, pool.keys)
            chosen = cosines.topk(self.config.top_k, dim=1).indices
            keys, values = coda.halves(pool.vectors[chosen])  # [images top half dim]
            prefixes[int(block)] = torch.cat([keys.flatten(1, 2), values.flatten(1, 2)], dim=1)
            if task is not None:
                penalty = penalty + (1 - cosines[:, chosen.flatten()]).sum()
        return self.inserted(pixels, prefixes), penalty
