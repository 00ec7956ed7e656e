"""Learning without Forgetting: fine-tuning of a CLIP or a ViT held to the answers of the model before the task.

Li and Hoiem, Learning without Forgetting, ECCV 2016. Over the columns of old classes, ``T^2 KL(softmax(old/T) ||
softmax(new/T))`` is added to the cross-entropy. The old model's features of the task's images and of old prompts are
computed once a task, not in every step.

Knows two losses. Does not know past tasks' data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from perdure.families.class_incremental import tuned
from perdure.families.class_incremental.settings import Tuning
from perdure.families.clip import classifier
from perdure.layers.losses import distillation, local_cross_entropy
from perdure.models.clip import Clip
from perdure.models.vit import Vit
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(Tuning):
    """Settings of Learning without Forgetting."""

    loss: Literal["full", "local"] = "full"
    """Cross-entropy over all classes seen, or over the current task's alone."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the distillation."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Temperature T of both softmaxes in the distillation."""


class Lwf(classifier.OfNames):
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
        config, first = self.config, task.offset
        classes = classifier.extend_classes(self.classes, task)
        logits_of = self.network.logits(classes, runtime)
        own = task.labels if config.loss == "local" else None
        teacher = self.network.table(classes[:first], task.train, runtime) if first and len(task.train) else None

        def loss(batch: Batch) -> dict[str, Tensor]:
            logits = logits_of(batch)
            entropy = local_cross_entropy(logits, batch["label"], own=own)
            if teacher is None:
                return {"loss": entropy}
            before = teacher[tuned.places(batch)].to(logits)
            kept = distillation(logits[:, :first], before, temperature=config.temperature)
            return {"loss": entropy + config.weight * kept, "cross_entropy": entropy, "distillation": kept}

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
