"""A multimodal language model as it is: nothing is learned. The zero-shot row of continual instruction tuning.

Needs: 16 GB GPU memory for 7 B parameters.

Knows how to ask. Does not know training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from perdure.models.language_model import LanguageModel
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of zero-shot answers."""

    max_new_tokens: Annotated[int, Field(gt=0)] = 1024
    """Most tokens of an answer."""
    generate_batch: Annotated[int, Field(gt=0)] = 16
    """Answers that are generated together."""


class ZeroShotLlm:
    """Stateless."""

    Config = Config
    answers = frozenset({"instruct"})
    not_updatable = "it learns nothing from training data"

    def __init__(self, config: Config, *, llm: LanguageModel) -> None:
        self.config, self.llm = config, llm.requires_grad_(False)

    def preprocess(self, example: Example, training: bool) -> Batch:
        return self.llm.preprocess(example, training)

    def collate(self, items: list[Batch]) -> Batch:
        return self.llm.collate(items)

    def learn(self, task: Task, runtime: Runtime) -> None:
        """Nothing is learned."""

    def predictor(self, query: Query):
        return self.llm.answerer(self.config)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
