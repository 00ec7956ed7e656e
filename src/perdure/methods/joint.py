"""Joint training of CLIP: keeps all examples of past tasks and trains anew on everything; the upper bound.

After each task the weights start from the pretrained ones and are trained on the examples of all tasks so far. Not
a continual method: storage and time grow with every task.

Knows one loss and a list of raw examples. Does not know what they show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from perdure import kept_examples
from perdure.checkpoint import stored_bytes
from perdure.families.clip import classifier, export, settings
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Training):
    """Settings of joint training."""

    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over all images so far."""


class Joint:
    """State: the trained weights, the first ones, the class names and every example so far."""

    Config = Config
    answers = frozenset({"classify"})
    scores_are = "logits"

    def __init__(self, config: Config, *, clip: Clip) -> None:
        classifier.check_template(config.template)
        self.config, self.clip = config, clip
        self.parameters = classifier.trainable(
            clip, config.trains, mode=config.lora_mode, rank=config.lora_rank, alpha=config.lora_alpha
        )
        self.initial = classifier.copy_parameters(self.parameters)
        self.classes: list[str] = []
        self.examples: list[Example] = []

    def preprocess(self, example: Example, training: bool) -> Batch:
        return classifier.preprocess(self.clip, example)

    def learn(self, task: Task, runtime: Runtime) -> None:
        config = self.config
        classes = classifier.extend_classes(self.classes, task)
        examples = [*self.examples, *task.train]
        classifier.restore_parameters(self.parameters, self.initial)
        prompts = classifier.prompts(config.template, classes, clean=config.clean_names)
        ids = classifier.tokenize(self.clip, prompts, runtime.device)

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(classifier.logits(self.clip, batch["image"], ids), batch["label"])

        classifier.fit(loss, self.parameters, self.clip, examples, config, runtime=runtime)
        self.classes, self.examples = classes, examples

    def predictor(self, query: Query):
        config = self.config
        return classifier.text_predictor(self.clip, config.template, query, clean=config.clean_names)

    def state_dict(self) -> dict[str, Any]:
        # Adapters are drawn at random when they are made; pretrained weights need no second copy.
        drawn = self.config.trains == "lora"
        return {
            "parameters": classifier.copy_parameters(self.parameters),
            "initial": classifier.copy_parameters(self.initial) if drawn else {},
            "classes": list(self.classes),
            "examples": kept_examples.pack(self.examples),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        classifier.restore_parameters(self.parameters, state["parameters"])
        self.initial = dict(state["initial"]) or self.initial
        self.classes = list(state["classes"])
        self.examples = kept_examples.unpack(state["examples"])

    def facts(self) -> dict[str, Any]:
        """What is kept of past tasks, for the result card."""
        packed = kept_examples.pack(self.examples)
        return {"memory_examples": len(self.examples), "stored_bytes": stored_bytes(packed)}

    def export(self, folder: Path) -> str:
        """The trained model, or the pretrained one and its PEFT adapter; and the classes."""
        config = self.config
        return export.save_prompted(self.clip, folder, self.classes, template=config.template, clean=config.clean_names)
