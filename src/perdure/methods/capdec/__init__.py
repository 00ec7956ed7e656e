"""CapDec: a captioner learned from texts alone, whose CLIP features are noised to stand in for image features.

Nukrai et al., Text-Only Training for Image Captioning using Noise-Injected CLIP, EMNLP 2022 Findings. Learning reads
captions only; images are seen for the first time when they are to be described.

Needs: 6 GB GPU memory, captions.

Knows settings and roles. What both captioners share (learning, answers) is in `perdure.families.captioning`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from perdure.families.captioning import learning, settings, speaking
from perdure.families.captioning.features import stored
from perdure.families.clip.clipscore import unit
from perdure.methods.capdec.noise import add_noise, in_ball
from perdure.models.captioner import Captioner
from perdure.models.captioner.convert import save_mapper
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Mapper):
    """Settings of CapDec; the defaults are those of RLCF's code, with OPT-125m."""

    noise: Literal["gaussian", "uniform"] = "gaussian"
    """Gaussian, or evenly spread in a ball."""
    noise_variance: Annotated[float, Field(ge=0)] = 0.016
    """Of each number of a unit feature, or the ball's squared radius; 0: none."""
    features: Path | None = None
    """Text features that `perdure prepare features` wrote; null: they are made at the start."""


class Capdec:
    """A frozen CLIP, a mapper that learns from texts, a frozen language model."""

    Config = Config
    answers = frozenset({"caption"})

    def __init__(self, config: Config, *, clip: Clip, captioner: Captioner) -> None:
        speaking.require_widths(captioner, clip)
        self.config, self.clip, self.captioner = config, clip.requires_grad_(False), captioner
        captioner.mapper.requires_grad_()

    def preprocess(self, example: Example, training: bool) -> Batch:
        return speaking.preprocess(self.clip, example)

    def learn(self, task: Task, runtime: Runtime) -> None:
        texts, _ = learning.flat(task.train.targets)
        if not texts:
            return
        found = self._encoded(texts, runtime)
        owner = torch.arange(len(texts))
        learning.learn_mapper(self.captioner, found, texts, owner, self.config, runtime=runtime, change=self._noised)

    @torch.no_grad()
    def _encoded(self, texts: list[str], runtime: Runtime) -> Tensor:
        """Unit features of the captions; over-long ones are cut, and counted in the log."""
        if self.config.features is not None:
            return unit(stored(self.config.features, "captions", texts))
        parts = []
        for begin in range(0, len(texts), 256):
            ids = self.clip.tokenize(texts[begin : begin + 256], truncate="keep-eot")
            parts.append(unit(self.clip.text_features(self.clip.cut(ids).to(self.clip.device))).cpu())
        runtime.log("texts", count=len(texts), cut=getattr(self.clip.tokenizer, "cut_texts", 0))
        return torch.cat(parts)

    def _noised(self, features: Tensor) -> Tensor:
        """Noise is drawn on the CPU, so that every device learns from the same; each step has its own seed."""
        noise = torch.randn(features.shape)
        if self.config.noise == "uniform":
            noise = in_ball(noise, torch.rand(len(features)))
        return add_noise(features, noise.to(features), variance=self.config.noise_variance)

    def predictor(self, query: Query):
        return speaking.predictor(self.clip, self.captioner, self.config)

    def export(self, folder: Path) -> str:
        """The mapper; give its folder to a captioner as `weights`."""
        file = save_mapper(folder, self.captioner.mapper)
        return (
            f'from safetensors.torch import load_file\nmapper = load_file("{file}")  # a captioner: weights={folder}\n'
        )

    def state_dict(self) -> dict[str, Any]:
        return {"mapper": dict(self.captioner.mapper.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.captioner.mapper.load_state_dict(state["mapper"])
