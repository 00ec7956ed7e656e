"""Fine-tuning whole towers of a CLIP on a task's own classes, for methods that merge what came of it.

Knows weights by name, the published schedule and the loss. Does not know how weights are merged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from perdure import training
from perdure.families.clip import classifier, export, settings
from perdure.loading import ExampleBatches
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Prompts):
    """How towers learn a task."""

    trains: Literal["image", "both"] = "image"
    """The image tower alone, under fixed texts, or both towers."""
    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over a task's images."""
    lr: Annotated[float, Field(gt=0)] = 1e-5
    """Learning rate of AdamW; rises over the warm-up, then falls to 0 as a cosine, step by step."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled."""
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    """Steps of rising learning rate."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a target that all classes have alike."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Max gradient norm; none: no clipping."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images a step."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Parts in which a batch is computed: less memory, the same step."""


class Tuned(classifier.OfNames):
    """A CLIP whose towers are tuned task by task and which answers by prompts: what merging methods have alike."""

    scores_are = "logits"

    def __init__(self, config: Settings, clip: Clip) -> None:
        classifier.check_template(config.template)
        self.config, self.clip = config, clip
        self.parameters = parameters(clip, config.trains)
        self.classes: list[str] = []

    def preprocess(self, example: Example, training: bool) -> Batch:
        return classifier.preprocess(self.clip, example)

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        return classifier.text_predictor(self.clip, self.config.template, query, clean=self.config.clean_names)

    def export(self, folder: Path) -> str:
        """The merged model, and one prompt a class."""
        config = self.config
        return export.save_prompted(self.clip, folder, self.classes, template=config.template, clean=config.clean_names)


def parameters(clip: Clip, trains: Literal["image", "both"]) -> dict[str, nn.Parameter]:
    """What is trained, by name: all of the towers but the logit scale; the rest is frozen."""
    clip.requires_grad_(False)
    found = dict(clip.visual_parameters())
    if trains == "both":
        found |= {name: p for name, p in clip.text_parameters().items() if name != "logit_scale"}
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found


def tune(
    clip: Clip,
    trained: Mapping[str, nn.Parameter],
    task: Task,
    classes: Sequence[str],
    config: Settings,
    runtime: Runtime,
) -> None:
    """Cross-entropy over the classes that the task teaches, from the weights that are there.

    Args:
        classes: names of all classes by label.
    """
    classifier.require_every_class(task)
    taught = classifier.Taught(task)
    prompts = classifier.prompts(config.template, taught.names(classes), clean=config.clean_names)
    fixed = classifier.encode_prompts(clip, prompts) if config.trains == "image" else None
    ids = classifier.tokenize(clip, prompts, clip.device)

    def loss(batch: Batch) -> Tensor:
        texts = classifier.text_features(clip, ids) if fixed is None else fixed
        logits = clip.scale.detach() * classifier.unit_image_features(clip, batch["image"]) @ texts.T
        return F.cross_entropy(logits, taught.places(batch["label"]), label_smoothing=config.label_smoothing)

    batches = ExampleBatches(
        task.train,
        classifier.Preprocessor(clip.transform),
        batch_size=config.batch_size,
        runtime=runtime,
        stage="train",
        training=True,
    )
    how = training.Fit(
        epochs=config.epochs,
        lr=config.lr,
        optimizer="adamw",
        weight_decay=config.weight_decay,
        schedule="cosine_warmup",
        warmup_steps=config.warmup_steps,
        clip_norm=config.clip_norm,
        accumulate=config.accumulate,
    )
    training.fit(loss, trained, batches, how, runtime=runtime, stage="train")


def copied(trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as they are, on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in trained.items()}


@torch.no_grad()
def put(trained: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """These weights in place of those that are there."""
    classifier.restore_parameters(trained, {n: t.to(trained[n]) for n, t in weights.items()})
