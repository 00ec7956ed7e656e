"""DualPrompt: prefixes in the attentions of a frozen vision transformer, general ones and a pool of expert ones.

Wang et al., DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning, ECCV 2022. The first blocks see
the same prefixes for all images, later ones those of the task whose key is nearest. Settings are those published for
CIFAR-100.

Needs: 6 GB GPU memory for ViT-B/16 and 24 images a batch.

Knows prefixes by block. The pool and the training are in `perdure.families.class_incremental`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from perdure import training
from perdure.families.class_incremental import heads, pool, prompting
from perdure.families.class_incremental.settings import Pool
from perdure.layers.prompts import lay_out
from perdure.models.vit import Insertions, Vit
from perdure.runtime import Runtime
from perdure.types import Task

Blocks = tuple[Annotated[int, Field(ge=0)], ...]


@dataclass(frozen=True, kw_only=True)
class Config(Pool):
    """Settings of DualPrompt."""

    lr: Annotated[float, Field(gt=0)] = 0.0028125
    """Learning rate of Adam: 0.03 for 256 images."""
    batch_size: Annotated[int, Field(ge=1)] = 24
    """Images a step."""
    top_k: Annotated[int, Field(ge=1)] = 1
    """Expert prompts an image takes; several are put one after the other."""
    task_slots: bool = True
    """While training, task t takes prompts ``t k .. (t+1) k - 1``, as long as there are any."""
    copy_prompts: bool = True
    """A task's prompts begin as those of the task before."""
    pull: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the cosines between queries and the keys of their prompts."""
    general_blocks: Blocks = (0, 1)
    """Blocks with general prefixes, counted from 0."""
    general_length: Annotated[int, Field(ge=1)] = 5
    """Vectors of a general prefix, for keys and for values."""
    expert_blocks: Blocks = (2, 3, 4)
    """Blocks with expert prefixes."""
    expert_length: Annotated[int, Field(ge=1)] = 5
    """Vectors of an expert prefix, for keys and for values. Published for ImageNet-R: 20."""
    official_layout: bool = False
    """Keys and values mixed up with the place in the batch, as the published PyTorch code does."""

    def faults(self):
        yield from Pool.faults(self)
        if both := sorted(set(self.general_blocks) & set(self.expert_blocks)):
            yield "expert_blocks", f"block {both[0]} is also one of general_blocks"


class Dualprompt(prompting.Prompted):
    """State: general prefixes ``[blocks 2 length dim]``, expert ones ``[blocks 2 pool length dim]``, keys, head."""

    Config = Config
    answers = frozenset({"classify"})

    def __init__(self, config: Config, *, vit: Vit) -> None:
        prompting.check_blocks({"general_blocks": config.general_blocks, "expert_blocks": config.expert_blocks}, vit)
        experts = (len(config.expert_blocks), 2, config.pool, config.expert_length, vit.dim)
        prompts = pool.Prompts(experts, pool=config.pool, like=vit)
        general = torch.zeros(len(config.general_blocks), 2, config.general_length, vit.dim, dtype=vit.dtype)
        prompts.general = nn.Parameter(general)
        super().__init__(config, vit, prompts, heads.truncated_normal(vit.dim))

    def begin(self, task: Task, runtime: Runtime) -> None:
        if self.config.batchwise and pool.slots_of(self.tasks, self.config) is None:
            prompting.require_one_process(runtime, "a batch votes for its prompts as a whole")
        pool.begin(self.tasks, self.prompts.vectors, self.prompts.keys, self.config, axis=2)

    def fit(self) -> training.Fit:
        return training.Fit(epochs=self.config.epochs, lr=self.config.lr, clip_norm=self.config.clip_norm)

    def forward(self, pixels: Tensor, queries: Tensor, task: int | None) -> tuple[Tensor, Tensor]:
        """The class token with the chosen prefixes, and the weighted pull of their keys."""
        config = self.config
        chosen, pull = pool.choose(queries, self.prompts.keys, config, task=task)
        taken = self.prompts.vectors[:, :, chosen].flatten(3, 4)  # [blocks 2 images top*length dim]
        experts = lay_out(taken, "official" if config.official_layout else "paired")
        general = self.prompts.general[:, None].expand(-1, len(pixels), -1, -1, -1)
        prefixes = {
            block: (prefix[:, 0], prefix[:, 1])
            for blocks, made in ((config.general_blocks, general), (config.expert_blocks, experts))
            for block, prefix in zip(blocks, made)
        }
        return self.vit.image_features(pixels, Insertions(prefixes=prefixes)), -config.pull * pull
