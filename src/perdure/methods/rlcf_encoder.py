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
    """Settings of RLCF on the image encoder; the defaults are the paper's for ImageNet and its variants."""

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
    samples: Annotated[int, Field(ge=1)] = 3
    """Classes sampled for each view (K)."""
    sampling: Literal["top", "distribution"] = "top"
    """`top`: the K most probable classes, as in the published code. `distribution`: drawn from the prediction."""
    baseline: Literal["image", "batch", "none"] = "image"
    """Subtracted from the scores: their mean over a view's samples, over all views, or nothing."""
    amplify: bool = False
    """Divide rewards by their standard deviation."""
    min_entropy: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy of the mean prediction (published code: 0.1 where it is on)."""
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
    ensemble: Literal["weighted", "mean"] = "weighted"
    """How several reward models are combined: by confidence, or all alike."""
    reward_confidences: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """One number a reward model; empty: the paper's, by architecture."""
    answer: Literal["plain", "confident"] = "plain"
    """Answer from the plain view, or from the mean over the kept views."""
    at_once: Annotated[int, Field(ge=1)] = 1
    """Images adapted side by side, each with weights, gradients and two moments of its own: four times the tuned
    weights in memory an image. Moves no number. With momentum, and for ResNets, always 1."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Views encoded at a time. Moves no number."""

    def faults(self):
        yield from views.check(self.views, self.selection)


class RlcfEncoder:
    """Each query brings the class names; each image, or with momentum each query, begins with the given weights."""

    Config = Config
    answers = frozenset({"classify"})
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
