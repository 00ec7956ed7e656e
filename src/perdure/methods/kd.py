"""Distillation at test time: tune CLIP's image tower to each test image towards a larger CLIP's prediction.

RLCF's comparison: the model that gives the reward there is the teacher here, and its whole prediction on the most
confident views is imitated. KD (Hinton et al., 2015), DKD (Zhao et al., CVPR 2022), ATKD (Guo et al., 2022).

Needs: 8 GB GPU memory for ViT-B/16 with ViT-L/14 as teacher.

Knows settings and roles. Episodes are in `perdure.families.test_time`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from perdure.families.clip import classifier, clipscore
from perdure.families.test_time import objectives, views
from perdure.families.test_time.encoder_tuning import encoder_predictor, tunable
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of distillation at test time."""

    loss: Literal["kd", "kd_plain", "dkd", "atkd", "atkd_std", "atkd2"] = "kd"
    """`kd`: cross-entropy with the teacher (`kd_plain`: less its entropy). `dkd`: target and others apart. `atkd`:
    logits scaled by their mean, as in the published code; `atkd_std`: by their spread; `atkd2`: layer-normalised."""
    template: str = "a photo of a {}."
    """Prompt of a class; `{}` stands for its name. The published scripts say `a_photo_of_a {}.`"""
    clean_names: bool = True
    """Put spaces for the underscores of class names."""
    tune: Literal["all", "norm"] = "all"
    """Parameters of the image tower that move: all, or those of its normalisation layers."""
    prior_strength: Annotated[float, Field(ge=0)] | None = None
    """For ResNets: weigh running statistics of batch norms by s / (s + 1) while adapting; null: batch statistics."""
    momentum: Annotated[float, Field(ge=0, le=1)] | None = None
    """Carry knowledge from sample to sample: slow weights keep this share (paper: 0.9998); null: begin anew."""
    update_every: Annotated[int, Field(ge=1)] = 64
    """With momentum: samples after which episodes start from the slow weights."""
    update_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """With momentum: share of the slow weights in that start; the rest is the pretrained weights."""
    steps: Annotated[int, Field(ge=0)] = 3
    """Optimizer steps an image; 0 is zero-shot."""
    lr: Annotated[float, Field(ge=0)] = 1e-5
    """Learning rate (AdamW)."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Decoupled weight decay."""
    views: Annotated[int, Field(ge=1)] = 64
    """Views of an image, the plain one included."""
    selection: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the views that is kept: those of least entropy."""
    augment: Literal["crop", "hard"] = "crop"
    """Random crop and flip; `hard` adds color jitter, grey and blur."""
    augmix: bool = False
    """AugMix on top (paper: for the fine-grained sets, not for ImageNet)."""
    answer: Literal["plain", "confident"] = "plain"
    """Answer from the plain view, or from the mean over the kept views."""
    at_once: Annotated[int, Field(ge=1)] = 1
    """Images adapted side by side, each with weights, gradients and two moments of its own: four times the tuned
    weights in memory an image. Moves no number. With momentum, and for ResNets, always 1."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Views encoded at a time. Moves no number."""

    def faults(self):
        yield from views.check(self.views, self.selection)


class Kd:
    """Each query brings the class names; each image, or with momentum each query, begins with the given weights."""

    Config = Config
    answers = frozenset({"classify"})
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
