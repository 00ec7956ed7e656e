"""Sequential fine-tuning of a CLIP or a ViT on each task's images, nothing done against forgetting.

A CLIP's images are held against prompts, a ViT (role `vit`) gets a head that grows. With `loss: local` this is
MG-CLIP's first stage alone. The lower bound that other methods are compared with.

Knows one loss. Does not know past tasks' data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from perdure.families.class_incremental import tuned
from perdure.families.class_incremental.settings import Tuning
from perdure.families.clip import classifier
from perdure.models.clip import Clip
from perdure.models.vit import Vit
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(Tuning):
    """Settings of sequential fine-tuning."""

    loss: Literal["full", "local"] = "full"
    """Softmax over all classes seen, or over the current task's alone."""


class Finetune(classifier.OfNames):
    """State: the trained weights and the class names."""

    Config = Config
    answers = frozenset({"classify"})
    one_role_of = frozenset({"clip", "vit"})
    scores_are = "logits"

    def __init__(self, config: Config, *, clip: Clip | None = None, vit: Vit | None = None) -> None:
        self.config, self.network = config, tuned.network(config, clip, vit)
        self.clip = self.network.clip
        self.classes: list[str] = []

    def preprocess(self, example: Example, training: bool) -> Batch:
        return classifier.Preprocessor(self.network.transform)(example, training)

    def learn(self, task: Task, runtime: Runtime) -> None:
        config = self.config
        classes = classifier.extend_classes(self.classes, task)
        taught = classifier.Taught(task) if config.loss == "local" else None
        logits = self.network.logits(classes, runtime, labels=taught.labels if taught else None)

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(logits(batch), batch["label"] if taught is None else taught.places(batch["label"]))

        self.network.fit(loss, task.train, runtime)
        self.classes = classes

    def merged(self, how: str) -> Mapping[str, Tensor]:
        """All that is trained; of low-rank updates B alone, and towards the pretrained weights: ``W + a B A``."""
        if self.config.trains == "all":
            return self.network.parameters
        return {n: p for n, p in self.network.parameters.items() if "lora_B" in n} if how == "base" else {}

    def predictor(self, query: Query):
        return self.network.predictor(query)

    def state_dict(self) -> dict[str, Any]:
        return {**self.network.state_dict(), "classes": list(self.classes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state)
        self.classes = list(state["classes"])

    def export(self, folder: Path) -> str | None:
        """Of a CLIP the trained model, or the pretrained one and its PEFT adapter; and the classes."""
        return self.network.export(folder, self.classes)
