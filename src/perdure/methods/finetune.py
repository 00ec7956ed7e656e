"""Sequential fine-tuning of CLIP: each task's images against prompts, nothing done against forgetting.

With `loss: local` this is MG-CLIP's first stage alone. The lower bound that other methods are compared with.

Knows one loss. Does not know past tasks' data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from perdure.families.clip import classifier, export, settings
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Training):
    """Settings of sequential fine-tuning."""

    loss: Literal["full", "local"] = "full"
    """Softmax over all classes seen, or over the current task's alone."""


class Finetune:
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
        config = self.config
        classes = classifier.extend_classes(self.classes, task)
        taught = classifier.Taught(task) if config.loss == "local" else None
        names = classes if taught is None else taught.names(classes)
        prompts = classifier.prompts(config.template, names, clean=config.clean_names)
        ids = classifier.tokenize(self.clip, prompts, runtime.device)

        def loss(batch: Batch) -> Tensor:
            logits = classifier.logits(self.clip, batch["image"], ids)
            return F.cross_entropy(logits, batch["label"] if taught is None else taught.places(batch["label"]))

        classifier.fit(loss, self.parameters, self.clip, task.train, config, runtime=runtime)
        self.classes = classes

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
