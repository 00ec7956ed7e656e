"""CODA-Prompt: prefixes that are sums of components, weighted by how attended queries fit their keys.

Smith et al., CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free Continual Learning, CVPR
2023. Each task adds components; those of earlier tasks stay as they are, and their keys, attentions and vectors start
orthogonal to all before them. Settings are those published for CIFAR-100 in ten tasks.

Needs: 16 GB GPU memory for ViT-B/16 and 128 images a batch.

Knows components and their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families.class_incremental import coda, heads, prompting
from perdure.layers.prompts import not_orthogonal, orthogonal_rows
from perdure.models.vit import Vit
from perdure.runtime import Runtime
from perdure.types import Task


@dataclass(frozen=True, kw_only=True)
class Config(coda.Settings):
    """Settings of CODA-Prompt."""

    components: Annotated[int, Field(ge=1)] = 10
    """New components a task (published: a pool of 100 over all tasks)."""
    length: coda.Length = 8
    """Vectors of a prompt: the first half for keys, the rest for values."""
    blocks: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2, 3, 4)
    """Blocks with a prompt of their own, counted from 0."""
    orthogonal: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the penalty for components, keys and attentions that are not orthogonal. Published code: 0."""


class Components(nn.Module):
    """Of one block: `vectors` ``[components length dim]``, `keys` and `attentions` ``[components dim]``."""

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(0, length, dim))
        self.keys, self.attentions = (nn.Parameter(torch.zeros(0, dim)) for _ in range(2))

    def prompt(self, queries: Float[Tensor, "images dim"], past: int) -> Float[Tensor, "images length dim"]:
        """Sums of the components; no gradient reaches the first `past`.

        A weight is the cosine of ``query * attention`` with the key, by two products of matrices.
        """
        vectors, keys, attentions = self.parts(past)
        keys = F.normalize(keys, dim=1)
        lengths = (queries**2 @ (attentions**2).T).sqrt().clamp_min(1e-12)
        weights = queries @ (attentions * keys).T / lengths
        return torch.einsum("im,mld->ild", weights, vectors)

    def parts(self, past: int) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors, keys and attentions, the first `past` of each without gradients."""
        vectors, keys, attentions = (
            torch.cat([table[:past].detach(), table[past:]]) for table in (self.vectors, self.keys, self.attentions)
        )
        return vectors, keys, attentions

    def penalty(self, past: int) -> Float[Tensor, ""]:
        """How far each table is from being orthogonal."""
        vectors, keys, attentions = self.parts(past)
        return not_orthogonal(keys) + not_orthogonal(attentions) + not_orthogonal(vectors.flatten(1))


class CodaPrompt(coda.Prompted):
    """State: the components of all tasks so far, by block, and the head."""

    Config = Config
    answers = frozenset({"classify"})

    def __init__(self, config: Config, *, vit: Vit) -> None:
        prompting.check_blocks({"blocks": config.blocks}, vit)
        prompts = nn.ModuleDict({str(block): Components(config.length, vit.dim) for block in config.blocks})
        super().__init__(config, vit, prompts.to(vit.dtype), heads.uniform(vit.dim))

    def begin(self, task: Task, runtime: Runtime) -> None:
        """New components, orthogonal to those before."""
        for block, components in self.prompts.items():
            for name, table in list(components.named_parameters()):
                new = table.new_zeros(self.config.components, *table.shape[1:])
                rows = torch.cat([table.detach(), new]).flatten(1)
                draw = partial(_draw, runtime, rows.shape[1], block, name)
                made = orthogonal_rows(rows, len(table), draw)
                setattr(components, name, nn.Parameter(made.view(-1, *table.shape[1:])))

    def forward(self, pixels: Tensor, queries: Tensor, task: int | None) -> tuple[Tensor, Tensor | float]:
        past = 0 if task is None else task * self.config.components
        made = {int(block): components.prompt(queries, past) for block, components in self.prompts.items()}
        penalty: Tensor | float = 0.0
        if task is not None and self.config.orthogonal:
            penalty = self.config.orthogonal * torch.stack([c.penalty(past) for c in self.prompts.children()]).sum()
        return self.inserted(pixels, made), penalty

    def load_state_dict(self, state) -> None:
        for name, table in state["prompts"].items():
            block, _, own = name.partition(".")
            setattr(self.prompts[block], own, nn.Parameter(torch.zeros_like(table)))
        super().load_state_dict(state)


def _draw(runtime: Runtime, size: int, block: str, name: str, row: int) -> Tensor:
    return runtime.normal((size,), block, name, row)
