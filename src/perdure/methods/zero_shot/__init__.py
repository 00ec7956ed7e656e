"""Zero-shot CLIP, one or several: nothing is adapted.

The baseline of test-time adaptation: one prompt or the mean of 80, a learned context (CoOp, CoCoOp) if there is a
file of one, and the naive ensemble of several CLIPs (the mean of their logits).

Knows prompts and roles. Does not know adaptation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from perdure.errors import RecipeError
from perdure.families.clip import classifier, clipscore
from perdure.families.clip.templates import IMAGENET_80
from perdure.families.test_time import objectives
from perdure.models.clip import Clip
from perdure.models.clip.context import make_context
from perdure.models.clip.prompts import ContextPrompts, shifted
from perdure.runtime import Runtime
from perdure.settings.config import Template
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of zero-shot classification."""

    template: Template = "a photo of a {}."
    """Prompt of a class; `{}` stands for its name."""
    templates: Literal["one", "imagenet80"] = "one"
    """`template` alone, or the mean feature of CLIP's 80 templates for ImageNet."""
    clean_names: bool = True
    """Put spaces for the underscores of class names; off in the published ensemble of several CLIPs."""
    context_file: Path | None = None
    """A learned context in place of the template: CoOp's or CoCoOp's `.pth.tar`."""

    def faults(self):
        if self.context_file is not None and self.templates != "one":
            yield "templates", "a learned context takes the place of templates; drop one of the two"
        if self.context_file is not None and not self.clean_names:
            yield "clean_names", "a learned context reads names with spaces for underscores; drop one of the two"


class ZeroShot:
    """Stateless: each query brings the class names."""

    Config = Config
    answers = frozenset({"classify"})
    not_updatable = "it learns nothing from training data"
    scores_are = "logits"

    def __init__(
        self, config: Config, *, policy: Clip, policy2: Clip | None = None, policy3: Clip | None = None
    ) -> None:
        classifier.check_template(config.template)
        models = [clip.requires_grad_(False) for clip in (policy, policy2, policy3) if clip is not None]
        if config.context_file is not None and len(models) > 1:
            raise RecipeError(
                f"a context belongs to one CLIP, and there are {len(models)}", where="method.context_file"
            )
        self.config, self.policy = config, policy
        self.models = clipscore.ClipReward(models, [1 / len(models)] * len(models), like=policy)
        self.context = make_context(policy, "", file=config.context_file) if config.context_file else None

    def preprocess(self, example: Example, training: bool) -> Batch:
        return {"image": self.policy.transform.pixels(example.inputs["image"])}

    def learn(self, task: Task, runtime: Runtime) -> None:
        """Nothing is learned."""

    def predictor(self, query: Query):
        objectives.require_candidates(query.candidates)
        if self.context is not None:
            return self._with_context(query)
        texts = self._texts(query)

        def predict(batch: Batch) -> Tensor:
            images = self.models.encode_images(self.policy.transform.normalize(batch["image"]))
            return self.models.logits(images, texts)

        return predict

    def _texts(self, query: Query) -> list[Tensor]:
        """Unit features of the classes for each model, averaged over templates."""
        config = self.config
        sentences = IMAGENET_80 if config.templates == "imagenet80" else (config.template,)
        summed: list[Any] = [0] * len(self.models.models)
        for sentence in sentences:
            prompts = classifier.prompts(sentence, query.candidates, clean=config.clean_names)
            summed = [total + features for total, features in zip(summed, self.models.encode_texts(prompts))]
        return [F.normalize(total, dim=-1) for total in summed]

    def _with_context(self, query: Query):
        """CoOp: one prompt a class. CoCoOp: one for each image, from its unit feature."""
        context, clip = self.context, self.policy
        assert context is not None and context.vectors is not None
        prompts = ContextPrompts.of(clip, query.candidates, context.wording)
        start = context.vectors.to(clip.device)
        net = context.net.to(clip.device) if context.net else None
        shared = prompts.features(start[None])[0]

        @torch.no_grad()
        def predict(batch: Batch) -> Tensor:
            images = classifier.unit_image_features(clip, batch["image"])
            if net is None:
                return clip.scale * images @ shared.T
            texts = prompts.features(shifted(start, net, images))
            return clip.scale * (images[:, None] @ texts.transpose(-1, -2))[:, 0]

        return predict

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
