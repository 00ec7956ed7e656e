"""DualPrompt as the code of CODA-Prompt has it: prefixes and keys of each block's own, one expert a task.

Wang et al., DualPrompt, ECCV 2022, in the form that Smith et al., CODA-Prompt, CVPR 2023, compare with: a task trains
its own expert, whose key is drawn to all of its queries; in tests the nearest key chooses, block by block.

Needs: 16 GB GPU memory for ViT-B/16 and 128 images a batch.

Knows experts by task and block.
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

Blocks = tuple[Annotated[int, Field(ge=0)], ...]


@dataclass(frozen=True, kw_only=True)
class Config(coda.Settings):
    """Settings of this form of DualPrompt."""

    pool: Annotated[int, Field(ge=1)] = 10
    """Experts: at least as many as there are tasks."""
    expert_blocks: Blocks = (2, 3, 4)
    """Blocks with expert prefixes, counted from 0."""
    expert_length: coda.Length = 20
    """Vectors of an expert, the first half for keys."""
    general_blocks: Blocks = (0, 1)
    """Blocks with general prefixes."""
    general_length: coda.Length = 6
    """Vectors of a general prefix, the first half for keys."""


class Experts(nn.Module):
    """Of one block: `vectors` ``[pool length dim]`` and `keys` ``[pool dim]``."""

    def __init__(self, pool: int, length: int, dim: int) -> None:
        super().__init__()
        self.vectors, self.keys = nn.Parameter(torch.zeros(pool, length, dim)), nn.Parameter(torch.zeros(pool, dim))


class DualpromptCoda(coda.Prompted):
    """State: experts with keys and general prefixes, by block, and the head."""

    Config = Config
    answers = frozenset({"classify"})

    def __init__(self, config: Config, *, vit: Vit) -> None:
        prompting.check_blocks({"general_blocks": config.general_blocks, "expert_blocks": config.expert_blocks}, vit)
        experts = {str(block): Experts(config.pool, config.expert_length, vit.dim) for block in config.expert_blocks}
        general = {
            str(block): nn.Parameter(torch.zeros(config.general_length, vit.dim)) for block in config.general_blocks
        }
        prompts = nn.ModuleDict({"experts": nn.ModuleDict(experts), "general": nn.ParameterDict(general)})
        super().__init__(config, vit, prompts.to(vit.dtype), heads.uniform(vit.dim))

    def begin(self, task: Task, runtime: Runtime) -> None:
        if self.tasks >= self.config.pool:
            raise RecipeError(
                f"this is task {self.tasks + 1}", where="method.pool", expected=f"at most {self.config.pool} tasks"
            )
        if runtime.processes > 1:
            raise RecipeError("the keys' loss is a sum over a step's images", expected="one process")

    def forward(self, pixels: Tensor, queries: Tensor, task: int | None) -> tuple[Tensor, Tensor | float]:
        made = {int(b): p.expand(len(pixels), -1, -1) for b, p in self.prompts["general"].items()}
        penalty: Tensor | float = 0.0
        for block, experts in self.prompts["experts"].items():
            cosines = similarities(queries, experts.keys)
            if task is None:
                made[int(block)] = experts.vectors[cosines.argmax(1)]
            else:
                made[int(block)] = experts.vectors[task].expand(len(pixels), -1, -1)
                penalty = penalty + (1 - cosines[:, task]).sum()
        return self.inserted(pixels, made), penalty
