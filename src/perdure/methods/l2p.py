"""L2P: a pool of prompts with keys in front of a frozen vision transformer, and a linear head.

Wang et al., Learning to Prompt for Continual Learning, CVPR 2022. The chosen prompts are tokens beside the patches; the
mean of what comes out of them is the feature. Settings are those published for CIFAR-100.

Needs: 6 GB GPU memory for ViT-B/16 and 16 images a batch.

Knows prompts as tokens. The pool and the training are in `perdure.families.class_incremental`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from perdure import training
from perdure.families.class_incremental import heads, pool, prompting
from perdure.families.class_incremental.settings import Pool
from perdure.models.vit import Insertions, Vit
from perdure.runtime import Runtime
from perdure.types import Task


@dataclass(frozen=True, kw_only=True)
class Config(Pool):
    """Settings of L2P."""

    lr: Annotated[float, Field(gt=0)] = 0.001875
    """Learning rate of Adam: 0.03 for 256 images."""
    length: Annotated[int, Field(ge=1)] = 5
    """Tokens of a prompt."""
    feature: Literal["prompt", "token", "both"] = "prompt"
    """What the head sees: the mean over the prompts' outputs, the class token, or the mean over both."""


class L2p(prompting.Prompted):
    """State: prompts ``[pool length dim]``, their keys, the head and the class names."""

    Config = Config
    answers = frozenset({"classify"})

    def __init__(self, config: Config, *, vit: Vit) -> None:
        vit.transformer()
        prompts = pool.Prompts((config.pool, config.length, vit.dim), pool=config.pool, like=vit)
        super().__init__(config, vit, prompts, heads.truncated_normal(vit.dim))

    def begin(self, task: Task, runtime: Runtime) -> None:
        if self.config.batchwise:
            prompting.require_one_process(runtime, "a batch votes for its prompts as a whole")
        pool.begin(self.tasks, self.prompts.vectors, self.prompts.keys, self.config, axis=0)

    def fit(self) -> training.Fit:
        return training.Fit(epochs=self.config.epochs, lr=self.config.lr, clip_norm=self.config.clip_norm)

    def forward(self, pixels: Tensor, queries: Tensor, task: int | None) -> tuple[Tensor, Tensor]:
        """The mean of what comes out of the chosen prompts, and the weighted pull of their keys."""
        chosen, pull = pool.choose(queries, self.prompts.keys, self.config, task=task)
        prompts = self.prompts.vectors[chosen].flatten(1, 2)
        tokens = self.vit.tokens(pixels, Insertions(prompts=prompts))[:, : 1 + prompts.shape[1]]
        seen = {"prompt": tokens[:, 1:], "token": tokens[:, :1], "both": tokens}[self.config.feature]
        return seen.mean(1), -self.config.pull * pull
