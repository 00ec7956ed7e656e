"""TPT's loss on the image encoder: tune CLIP's image tower until the views of a test image agree.

The entropy of the views' mean prediction (Shu et al., NeurIPS 2022) as RLCF's comparison has it: the whole image
tower moves instead of the prompt.

Needs: 6 GB GPU memory for ViT-B/16.

Knows settings and roles. Episodes are in `perdure.families.test_time`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from perdure.families.clip import classifier
from perdure.families.test_time import losses, objectives, settings, views
from perdure.families.test_time.encoder_tuning import encoder_predictor, tunable
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Encoder):
    """Settings of TPT's loss on the image encoder."""

    def faults(self):
        yield from views.check(self.views, self.selection)


class TptEncoder:
    """Each query brings the class names; each image, or with momentum each query, begins with the given weights."""

    Config = Config
    answers = frozenset({"classify"})
    not_updatable = "it learns nothing from training data"
    scores_are = "logits"
    adapts = True

    def __init__(self, config: Config, *, policy: Clip) -> None:
        classifier.check_template(config.template)
        self.config, self.policy = config, policy
        self.tuned = tunable(policy, config.tune)
        self.carries_state = config.momentum is not None

    def preprocess(self, example: Example, training: bool) -> Batch:
        return views.preprocess_as(self.config, example, self.policy.transform)

    def learn(self, task: Task, runtime: Runtime) -> None:
        """Nothing is learned."""

    def predictor(self, query: Query):
        config = self.config
        objectives.require_candidates(query.candidates)
        prompts = classifier.prompts(config.template, query.candidates, clean=config.clean_names)

        def prepare(pixels: Tensor, index: Tensor, seeds: list[int]):
            return [losses.average_entropy] * len(index)

        return encoder_predictor(self.policy, prompts, self.tuned, config, prepare)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
