"""Joint training of a CLIP or a ViT: keeps all past examples and trains anew on everything; the upper bound.

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
from perdure.families.class_incremental import tuned
from perdure.families.class_incremental.settings import Tuning
from perdure.families.clip import classifier
from perdure.models.clip import Clip
from perdure.models.vit import Vit
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(Tuning):
    """Settings of joint training."""

    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over all images so far."""


class Joint(classifier.OfNames):
    """State: the trained weights, the first ones, the class names and every example so far."""

    Config = Config
    answers = frozenset({"classify"})
    one_role_of = frozenset({"clip", "vit"})
    scores_are = "logits"

    def __init__(self, config: Config, *, clip: Clip | None = None, vit: Vit | None = None) -> None:
        self.config, self.network = config, tuned.network(config, clip, vit)
        self.clip = self.network.clip
        self.initial = classifier.copy_parameters(self.network.parameters)
        self.classes: list[str] = []
        self.examples: list[Example] = []

    def preprocess(self, example: Example, training: bool) -> Batch:
        return classifier.Preprocessor(self.network.transform)(example, training)

    def learn(self, task: Task, runtime: Runtime) -> None:
        classes = classifier.extend_classes(self.classes, task)
        examples = [*self.examples, *task.train]
        self.network.begin_anew(self.initial)
        logits = self.network.logits(classes, runtime)

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(logits(batch), batch["label"])

        self.network.fit(loss, examples, runtime)
        self.classes, self.examples = classes, examples

    def predictor(self, query: Query):
        return self.network.predictor(query)

    def state_dict(self) -> dict[str, Any]:
        # Adapters are drawn at random when they are made; pretrained weights need no second copy.
        drawn = self.config.trains == "lora"
        return {
            **self.network.state_dict(),
            "initial": classifier.copy_parameters(self.initial) if drawn else {},
            "classes": list(self.classes),
            "examples": kept_examples.pack(self.examples),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state)
        self.initial = dict(state["initial"]) or self.initial
        self.classes = list(state["classes"])
        self.examples = kept_examples.unpack(state["examples"])

    def facts(self) -> dict[str, Any]:
        """What is kept of past tasks, for the result card."""
        packed = kept_examples.pack(self.examples)
        return {"memory_examples": len(self.examples), "stored_bytes": stored_bytes(packed)}

    def export(self, folder: Path) -> str | None:
        """Of a CLIP the trained model, or the pretrained one and its PEFT adapter; and the classes."""
        return self.network.export(folder, self.classes)
