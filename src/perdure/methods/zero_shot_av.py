"""Zero-shot CLIP and CLAP: class names against frames and sound, with no training at all.

Knows two templates and the sum of two scores. Answers where class names suffice: localized events, parsed videos, and
videos of one class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch.nn import functional as F

from perdure.families.audio_visual import readout
from perdure.families.audio_visual.events import event_logits
from perdure.families.audio_visual.inputs import (
    Problem,
    mel_of,
    pixels_of,
    preprocess,
    problem_of,
    segments_in,
    statistics_of,
)
from perdure.families.clip.classifier import check_template, encode_prompts, prompts
from perdure.models.clap import Clap
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.settings.config import Template
from perdure.types import Batch, Example, Predictions, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of zero-shot CLIP and CLAP."""

    template: Template = "a photo of a {}."
    """Prompt of a class for CLIP; `{}` stands for its name."""
    sound_template: Template = "The sounds of {}"
    """The same for CLAP."""
    audio_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of what is heard against what is seen."""
    clip_seconds: Annotated[float, Field(gt=0)] | None = None
    """Length that each second of sound is repeated to; none: what the tasks say (ten seconds if they do not)."""


class ZeroShotAv:
    """State: the length of the clips of the tasks seen."""

    Config = Config
    answers = frozenset({"localize-events", "parse-video", "classify"})
    new_labels_only = "each task has a head of its own"
    not_updatable = "it learns nothing from training data"

    def __init__(self, config: Config, *, clip: Clip, audio: Clap) -> None:
        check_template(config.template)
        check_template(config.sound_template)
        self.config, self.clip, self.audio = config, clip, audio
        self.seconds = config.clip_seconds or 10.0

    def preprocess(self, example: Example, training: bool) -> Batch:
        return preprocess(example, size=self.clip.image_size, training=training)

    def learn(self, task: Task, runtime: Runtime) -> None:
        self.seconds = self.config.clip_seconds or problem_of(task).clip_seconds

    def predictor(self, query: Query) -> Callable[[Batch], Predictions]:
        clip, clap, config = self.clip, self.audio, self.config
        problem = Problem(name=query.task or "", kind=query.kind, candidates=query.candidates, offset=query.offset)
        seen_classes = encode_prompts(clip, prompts(config.template, query.candidates, clean=True))
        heard_classes = F.normalize(clap.encode_texts(prompts(config.sound_template, query.candidates)), dim=1)

        def predict(batch: Batch) -> Predictions:
            pair = event_logits(
                clip.image_features(pixels_of(batch, statistics_of(clip, "clip"))),
                clap.encode_audio(mel_of(clap, batch, seconds=self.seconds)),
                seen_classes=seen_classes,
                heard_classes=heard_classes,
                seen_scale=clip.scale,
                heard_scale=config.audio_weight * clap.raw_scale.exp(),
            )
            by_eye, by_ear = (logits.unflatten(0, (-1, segments_in(batch))) for logits in pair)
            return readout.answer(problem, {"scores": by_eye + by_ear, "visual": by_eye, "audio": by_ear})

        return predict

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seconds = state["seconds"]
