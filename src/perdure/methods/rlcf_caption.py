"""RLCF for captions: tune a captioner's mapper to each image by the feedback of a frozen CLIP.

Zhao et al., Test-Time Adaptation with CLIP Reward for Zero-Shot Generalization in Vision-Language Models, ICLR 2024.
In each step captions are searched, scored by CLIPScore against their mean, and made more or less probable; then the
image is described, and the mapper is put back.

Needs: 8 GB GPU memory for ViT-B/16 and OPT-125m with ViT-L/14 as reward.

Knows settings and roles. Episodes are in `perdure.families.captioning.adapting`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field

from perdure.families.captioning import speaking
from perdure.families.captioning.adapting import CaptionTuner, Sampling
from perdure.families.clip import clipscore
from perdure.families.test_time.prompt_tuning import Steps
from perdure.models.captioner import Captioner
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of RLCF for captions; the defaults are the paper's for CapDec on Flickr30k."""

    steps: Annotated[int, Field(ge=0)] = 4
    """Optimizer steps an image; 0 is the captioner as it is."""
    samples: Annotated[int, Field(ge=1)] = 6
    """Captions sampled in a step (K; paper: 6 for CapDec, 10 for ClipCap)."""
    lr: Annotated[float, Field(ge=0)] = 5e-6
    """Learning rate (AdamW; paper: 5e-6 and 3e-6 for CapDec on Flickr30k and nocaps, 2e-6 for ClipCap)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Of AdamW."""
    amplify: bool = False
    """Divide rewards by their standard deviation."""
    mask_padding: bool = False
    """Leave padding out of the loss. The published code counts it: pad and ignored token differ there."""
    nucleus: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw the samples from the most probable words that make up this share (published option: 0.92); null: beam
    search."""
    beams: Annotated[int, Field(ge=1)] = 5
    """Of the final caption."""
    most_words: Annotated[int, Field(ge=1)] = 50
    """Most tokens of a caption."""
    momentum: Annotated[float, Field(ge=0, le=1)] | None = None
    """Carry knowledge from image to image: slow weights keep this share (paper: 0.9998); null: begin anew."""
    update_every: Annotated[int, Field(ge=1)] = 64
    """With momentum: images after which episodes start from the slow weights."""
    update_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """With momentum: share of the slow weights in that start; the rest is the given weights."""
    reward_mean: bool = False
    """Average several reward models alike, instead of by confidence."""
    reward_confidences: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """One number a reward model; empty: the paper's, by architecture."""


class RlcfCaption:
    """Every image, or with momentum every test set, begins with the given mapper."""

    Config = Config
    answers = frozenset({"caption"})
    not_updatable = "it learns nothing from training data"
    adapts = True

    def __init__(
        self,
        config: Config,
        *,
        clip: Clip,
        captioner: Captioner,
        reward: Clip,
        reward2: Clip | None = None,
        reward3: Clip | None = None,
    ) -> None:
        speaking.require_widths(captioner, clip)
        models, weights = clipscore.ensemble(
            [reward, reward2, reward3],
            mode="mean" if config.reward_mean else "weighted",
            confidences=config.reward_confidences,
        )
        self.config, self.clip, self.captioner = config, clip.requires_grad_(False), captioner
        self.reward = clipscore.ClipReward(models, weights, like=clip)
        captioner.mapper.requires_grad_()
        self.carries_state = config.momentum is not None

    def preprocess(self, example: Example, training: bool) -> Batch:
        return speaking.preprocess(self.clip, example)

    def learn(self, task: Task, runtime: Runtime) -> None:
        """Nothing is learned."""

    def predictor(self, query: Query):
        config = self.config
        tuner = CaptionTuner(
            self.captioner,
            self.reward,
            Steps(count=config.steps, lr=config.lr, weight_decay=config.weight_decay, eps=config.eps),
            Sampling(
                samples=config.samples,
                most=config.most_words,
                beams=config.beams,
                amplify=config.amplify,
                mask_padding=config.mask_padding,
                nucleus=config.nucleus,
            ),
            momentum=config.momentum,
            update_every=config.update_every,
            update_share=config.update_share,
        )

        def predict(batch: Batch) -> list[str]:
            pixels = self.clip.transform.normalize(batch["image"])
            with torch.no_grad():
                features = clipscore.unit(self.clip.image_features(pixels))
            seen = self.reward.encode_images(pixels)
            return [
                tuner.caption(features[i : i + 1], [f[i : i + 1] for f in seen], seed=seed)
                for i, seed in enumerate(batch["seed"].tolist())
            ]

        return predict

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
