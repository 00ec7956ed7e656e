"""Distillation at test time: tune CLIP's image tower to each test image towards a larger CLIP's prediction.

RLCF's comparison: the model that gives the reward there is the teacher here, and its whole prediction on the most
confident views is imitated. KD (Hinton et al., 2015), DKD (Zhao et al., CVPR 2022), ATKD (Guo et al., 2022).

Needs: 8 GB GPU memory for ViT-B/16 with ViT-L/14 as teacher.

Knows settings and roles. Episodes are in `perdure.families.test_time`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from perdure.families.clip import classifier, clipscore
from perdure.families.test_time import objectives, settings, views
from perdure.families.test_time.encoder_tuning import encoder_predictor, tunable
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Encoder):
    """Settings of distillation at test time."""

    loss: Literal["kd", "kd_plain", "dkd", "atkd", "atkd_std", "atkd2"] = "kd"
    """`kd`: cross-entropy with the teacher (`kd_plain`: less its entropy). `dkd`: target and others apart. `atkd`:
    logits scaled by their mean, as in the published code; `atkd_std`: by their spread; `atkd2`: layer-normalised."""

    def faults(self):
        yield from views.check(self.views, self.selection)


class Kd:
    """Each query brings the class names; each image, or with momentum each query, begins with the given weights."""

    Config = Config
    answers = frozenset({"classify"})
    not_updatable = "it learns nothing from training data"
    scores_are = "logits"
    adapts = True

    def __init__(
        self, config: Config, *, policy: Clip, reward: Clip, reward2: Clip | None = None, reward3: Clip | None = None
    ) -> None:
        classifier.check_template(config.template)
        models, weights = clipscore.ensemble([reward, reward2, reward3], mode="mean")
        self.config, self.policy = config, policy
        self.teacher = clipscore.ClipReward(models, weights, like=policy)
        self.tuned = tunable(policy, config.tune)
        self.carries_state = config.momentum is not None

    def preprocess(self, example: Example, training: bool) -> Batch:
        return views.preprocess_as(self.config, example, self.policy.transform)

    def learn(self, task: Task, runtime: Runtime) -> None:
        """Nothing is learned."""

    def predictor(self, query: Query):
        config, teacher = self.config, self.teacher
        objectives.require_candidates(query.candidates)
        prompts = classifier.prompts(config.template, query.candidates, clean=config.clean_names)
        texts = teacher.encode_texts(prompts)

        def prepare(pixels: Tensor, index: Tensor, seeds: list[int]):
            logits = teacher.logits(teacher.encode_views(pixels, index), texts)
            return [objectives.imitate(config.loss, row[None]) for row in logits]

        return encoder_predictor(self.policy, prompts, self.tuned, config, prepare)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
