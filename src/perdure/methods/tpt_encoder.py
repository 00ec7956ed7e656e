"""TPT's loss on the image encoder: tune CLIP's image tower until the views of a test image agree.

The entropy of the views' mean prediction (Shu et al., NeurIPS 2022) as RLCF's comparison has it: the whole image
tower moves instead of the prompt.

Needs: 6 GB GPU memory for ViT-B/16.

Knows settings and roles. Episodes are in `perdure.families.test_time`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from perdure.families.clip import classifier
from perdure.families.test_time import losses, objectives, views
from perdure.families.test_time.encoder_tuning import encoder_predictor, tunable
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of TPT's loss on the image encoder."""

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


class TptEncoder:
    """Each query brings the class names; each image, or with momentum each query, begins with the given weights."""

    Config = Config
    answers = frozenset({"classify"})
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
