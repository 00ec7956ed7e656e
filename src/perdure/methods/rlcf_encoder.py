"""RLCF on the image encoder: tune CLIP's image tower to each test image by the feedback of a frozen CLIP.

Zhao et al., Test-Time Adaptation with CLIP Reward for Zero-Shot Generalization in Vision-Language Models, ICLR 2024.
A few policy-gradient steps on the image's most confident views; the reward is the CLIPScore between a view and the
sampled classes. Then the image is answered and the weights are put back; with `momentum`, slowly moved instead.

Needs: 8 GB GPU memory for ViT-B/16 with ViT-L/14 as reward.

Knows settings and roles. Episodes are in `perdure.families.test_time`, the reward in `perdure.families.clip.clipscore`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from perdure.families.clip import classifier, clipscore
from perdure.families.test_time import objectives, settings, views
from perdure.families.test_time.encoder_tuning import encoder_predictor, tunable
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Rewarded, settings.Encoder):
    """Settings of RLCF on the image encoder; the defaults are the paper's for ImageNet and its variants."""

    min_entropy: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy of the mean prediction (published code: 0.1 where it is on)."""

    def faults(self):
        yield from views.check(self.views, self.selection)


class RlcfEncoder:
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
        models, weights = clipscore.ensemble(
            [reward, reward2, reward3], mode=config.ensemble, confidences=config.reward_confidences
        )
        self.config, self.policy = config, policy
        self.reward = clipscore.ClipReward(models, weights, like=policy)
        self.tuned = tunable(policy, config.tune)
        self.carries_state = config.momentum is not None

    def preprocess(self, example: Example, training: bool) -> Batch:
        return views.preprocess_as(self.config, example, self.policy.transform)

    def learn(self, task: Task, runtime: Runtime) -> None:
        """Nothing is learned."""

    def predictor(self, query: Query):
        config, reward = self.config, self.reward
        objectives.require_candidates(query.candidates)
        objectives.require_samples(config.samples, len(query.candidates), config.sampling)
        prompts = classifier.prompts(config.template, query.candidates, clean=config.clean_names)
        texts = reward.encode_texts(prompts)
        settings = objectives.Reinforce(
            samples=config.samples,
            baseline=config.baseline,
            amplify=config.amplify,
            min_entropy=config.min_entropy,
            sampling=config.sampling,
        )

        def prepare(pixels: Tensor, index: Tensor, seeds: list[int]):
            table = reward.table(reward.encode_views(pixels, index), texts)
            return [objectives.reinforce(row[None], settings, seeds=[seed]) for row, seed in zip(table, seeds)]

        return encoder_predictor(self.policy, prompts, self.tuned, config, prepare)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
