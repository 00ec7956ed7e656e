"""Learning without Forgetting for CLIP: fine-tuning held to the answers of the model before the task.

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

import torch
from pydantic import Field
from torch import Tensor

from perdure.families.clip import classifier, export, settings
from perdure.layers.losses import distillation, local_cross_entropy
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Training):
    """Settings of Learning without Forgetting."""

    loss: Literal["full", "local"] = "full"
    """Cross-entropy over all classes seen, or over the current task's alone."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the distillation."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Temperature T of both softmaxes in the distillation."""


class Lwf:
    """State: the trained weights and the class names."""

    Config = Config
    answers = frozenset({"classify"})
    scores_are = "logits"

    def __init__(self, config: Config, *, clip: Clip) -> None:
        classifier.check_template(config.template)
        self.config, self.clip = config, clip
        self.parameters = classifier.trainable(
            clip, config.trains, mode=config.lora_mode, rank=config.lora_rank, alpha=config.lora_alpha
        )
        self.classes: list[str] = []

    def preprocess(self, example: Example, training: bool) -> Batch:
        return classifier.preprocess(self.clip, example)

    def learn(self, task: Task, runtime: Runtime) -> None:
        config, first = self.config, task.offset
        classes = classifier.extend_classes(self.classes, task)
        prompts = classifier.prompts(config.template, classes, clean=config.clean_names)
        ids = classifier.tokenize(self.clip, prompts, runtime.device)
        own = task.labels if config.loss == "local" else None
        teacher = self._teacher(task, prompts[:first], runtime) if first and len(task.train) else None

        def loss(batch: Batch) -> dict[str, Tensor]:
            logits = classifier.logits(self.clip, batch["image"], ids)
            entropy = local_cross_entropy(logits, batch["label"], own=own)
            if teacher is None:
                return {"loss": entropy}
            before = teacher[batch["position"]].to(logits)
            kept = distillation(logits[:, :first], before, temperature=config.temperature)
            return {"loss": entropy + config.weight * kept, "cross_entropy": entropy, "distillation": kept}

        classifier.fit(loss, self.parameters, self.clip, task.train, config, runtime=runtime)
        self.classes = classes

    def _teacher(self, task: Task, old_prompts: list[str], runtime: Runtime) -> Tensor:
        """Logits of old classes for each training image, from the model as it is now: [images old], on the CPU."""
        found = classifier.encode_images(self.clip, task.train, batch_size=self.config.batch_size, runtime=runtime)
        texts = classifier.encode_prompts(self.clip, old_prompts).cpu()
        table = torch.zeros(len(task.train), len(old_prompts), dtype=found["feature"].dtype)
        table[found["position"]] = self.clip.scale.item() * found["feature"] @ texts.T
        return table

    def merged(self, how: str) -> Mapping[str, Tensor]:
        """All that is trained; of low-rank updates B alone, and towards the pretrained weights: ``W + a B A``."""
        if self.config.trains == "all":
            return self.parameters
        return {n: p for n, p in self.parameters.items() if "lora_B" in n} if how == "base" else {}

    def predictor(self, query: Query):
        config = self.config
        return classifier.text_predictor(self.clip, config.template, query, clean=config.clean_names)

    def state_dict(self) -> dict[str, Any]:
        return {"parameters": classifier.copy_parameters(self.parameters), "classes": list(self.classes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        classifier.restore_parameters(self.parameters, state["parameters"])
        self.classes = list(state["classes"])

    def export(self, folder: Path) -> str:
        """The trained model, or the pretrained one and its PEFT adapter; and the classes."""
        config = self.config
        return export.save_prompted(self.clip, folder, self.classes, template=config.template, clean=config.clean_names)
