"""RLCF on prompts: tune CLIP's prompt to each test image by the feedback of a frozen CLIP.

Zhao et al., Test-Time Adaptation with CLIP Reward for Zero-Shot Generalization in Vision-Language Models, ICLR 2024.
The context vectors of the class prompts take a few policy-gradient steps on the image's most confident views; the
reward is the CLIPScore between a view and the sampled classes. Then the image is answered and the context forgotten.

Needs: 6 GB GPU memory for ViT-B/16 with ViT-L/14 as reward.

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
from perdure.families.test_time.prompt_tuning import tuner_of
from perdure.models.clip import Clip
from perdure.models.clip.context import context_of
from perdure.runtime import Runtime
from perdure.settings.config import Template
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Rewarded, settings.Prompt):
    """Settings of RLCF on prompts; the defaults are the paper's for ImageNet and its variants."""

    reward_template: Template = "a photo of a {}."
    """Class prompt that the reward model reads; underscores of names become spaces."""
    steps: Annotated[int, Field(ge=0)] = 3
    """Optimizer steps an image (paper: 3, and 5 for the fine-grained sets); 0 is zero-shot."""
    min_entropy: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy of the mean prediction (published code: 0.1 where it is on)."""
    lr: Annotated[float, Field(ge=0)] = 7e-3

    def faults(self):
        yield from views.check(self.views, self.selection)


class RlcfPrompt:
    """Stateless: each query brings the class names, each image begins anew."""

    Config = Config
    answers = frozenset({"classify"})
    not_updatable = "it learns nothing from training data"
    scores_are = "logits"
    adapts = True

    def __init__(
        self, config: Config, *, policy: Clip, reward: Clip, reward2: Clip | None = None, reward3: Clip | None = None
    ) -> None:
        classifier.check_template(config.reward_template)
        models, weights = clipscore.ensemble(
            [reward, reward2, reward3], mode=config.ensemble, confidences=config.reward_confidences
        )
        self.config, self.policy = config, policy.requires_grad_(False)
        self.reward = clipscore.ClipReward(models, weights, like=policy)
        self.context = context_of(config, policy)

    def preprocess(self, example: Example, training: bool) -> Batch:
        return views.preprocess_as(self.config, example, self.policy.transform)

    def learn(self, task: Task, runtime: Runtime) -> None:
        """Nothing is learned."""

    def predictor(self, query: Query):
        config, reward = self.config, self.reward
        objectives.require_candidates(query.candidates)
        objectives.require_samples(config.samples, len(query.candidates), config.sampling)
        texts = reward.encode_texts(classifier.prompts(config.reward_template, query.candidates, clean=True))
        tuner = tuner_of(config, self.policy, query.candidates, self.context)
        settings = objectives.Reinforce(
            samples=config.samples,
            baseline=config.baseline,
            amplify=config.amplify,
            min_entropy=config.min_entropy,
            sampling=config.sampling,
        )

        def answer(pixels: Tensor, seeds: list[int]) -> Tensor:
            def prepare(index: Tensor):
                return objectives.reinforce(
                    reward.table(reward.encode_views(pixels, index), texts), settings, seeds=seeds
                )

            return tuner.logits(pixels, prepare)

        def predict(batch: Batch) -> Tensor:
            return views.in_parts(batch, self.policy.transform, config.at_once, answer)

        return predict

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
