"""TPT on prompts: tune CLIP's prompt to each test image until its views agree (least entropy of their mean).

Shu et al., Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models, NeurIPS 2022. Begins with
a hand-written context, or with the file of CoOp or CoCoOp.

Needs: 6 GB GPU memory for ViT-B/16.

Knows settings and roles. Episodes are in `perdure.families.test_time`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from perdure.families.test_time import losses, objectives, settings, views
from perdure.families.test_time.prompt_tuning import tuner_of
from perdure.models.clip import Clip
from perdure.models.clip.context import context_of
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Prompt):
    """Settings of TPT on prompts; the defaults are the paper's."""

    steps: Annotated[int, Field(ge=0)] = 1
    lr: Annotated[float, Field(ge=0)] = 5e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01

    def faults(self):
        yield from views.check(self.views, self.selection)


class TptPrompt:
    """Stateless: each query brings the class names, each image begins anew."""

    Config = Config
    answers = frozenset({"classify"})
    not_updatable = "it learns nothing from training data"
    scores_are = "logits"
    adapts = True

    def __init__(self, config: Config, *, policy: Clip) -> None:
        self.config, self.policy = config, policy.requires_grad_(False)
        self.context = context_of(config, policy)

    def preprocess(self, example: Example, training: bool) -> Batch:
        return views.preprocess_as(self.config, example, self.policy.transform)

    def learn(self, task: Task, runtime: Runtime) -> None:
        """Nothing is learned."""

    def predictor(self, query: Query):
        config = self.config
        objectives.require_candidates(query.candidates)
        tuner = tuner_of(config, self.policy, query.candidates, self.context)

        def answer(pixels: Tensor, seeds: list[int]) -> Tensor:
            return tuner.logits(pixels, lambda index: losses.average_entropy)

        def predict(batch: Batch) -> Tensor:
            return views.in_parts(batch, self.policy.transform, config.at_once, answer)

        return predict

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
