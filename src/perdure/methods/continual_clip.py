"""Continual-CLIP: frozen CLIP, zero-shot, over the classes seen so far; nothing is trained.

Thengane et al., CLIP model is an Efficient Continual Learner, 2022. The published templates are "a bad photo
of a {}." for CIFAR-100 and TinyImageNet, "a good photo of a {}." for ImageNet and CORe50.

Knows one prompt a class. Does not know training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.families.clip import classifier, export, settings
from perdure.families.clip.frozen_tower import FrozenTower, OnFrozenTower
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.settings.config import Template
from perdure.types import Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Prompts):
    """Settings of Continual-CLIP."""

    template: Template = "a bad photo of a {}."


class ContinualClip(OnFrozenTower, classifier.OfNames):
    """State: the class names seen, for an export alone; each query brings its own."""

    Config = Config
    answers = frozenset({"classify"})
    scores_are = "logits"

    def __init__(self, config: Config, *, clip: Clip) -> None:
        classifier.check_template(config.template)
        self.config, self.clip = config, clip.requires_grad_(False)
        self.frozen = FrozenTower(self.clip)
        self.classes: list[str] = []

    def learn(self, task: Task, runtime: Runtime) -> None:
        """Nothing is learned but names."""
        self.classes = classifier.extend_classes(self.classes, task)

    def predictor(self, query: Query):
        config = self.config
        seen = self.frozen.unit
        return classifier.text_predictor(self.clip, config.template, query, clean=config.clean_names, seen=seen)

    def state_dict(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.classes = list(state["classes"])

    def export(self, folder: Path) -> str:
        """The pretrained model and the classes."""
        config = self.config
        return export.save_prompted(self.clip, folder, self.classes, template=config.template, clean=config.clean_names)
