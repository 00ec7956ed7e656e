"""Prototypes (SimpleCIL): frozen CLIP or ViT, each class is the mean of its features; the nearest by cosine wins.

Zhou et al., Revisiting Class-Incremental Learning with Pre-Trained Models, 2023. One pass over the images,
nothing is trained, no text is used.

Knows one mean a class. Does not know training or prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from perdure.families.class_incremental import heads, tuned
from perdure.families.clip import classifier, export
from perdure.families.clip.frozen_tower import FrozenTower, OnFrozenTower
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the prototype classifier."""

    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images at a time where features are computed; changes no result."""


class Prototype(OnFrozenTower):
    """State: `means`, one row a class in the order of labels, and the class names."""

    Config = Config
    learned_classes_only = "it reads no names of classes"
    answers = frozenset({"classify"})
    one_role_of = frozenset({"clip", "vit"})

    def __init__(self, config: Config, *, clip: Clip | None = None, vit: classifier.ImageTower | None = None) -> None:
        tower = tuned.one_of(clip=clip, vit=vit)
        self.config, self.clip = config, clip
        self.frozen = FrozenTower(tower.requires_grad_(False))
        self.means = torch.zeros(0, tower.dim, dtype=tower.dtype)
        self.counts = torch.zeros(0, dtype=torch.long)
        """Images of each class."""
        self.classes: list[str] = []

    def learn(self, task: Task, runtime: Runtime) -> None:
        classifier.require_every_class(task)
        classes = classifier.extend_classes(self.classes, task)
        size = self.config.batch_size
        found = self.frozen.pass_over(task.train, batch_size=size, runtime=runtime, unit=True)
        classifier.require_every_class(task, found["label"])
        new, count = classifier.labels_of(task), torch.bincount(found["label"], minlength=len(classes))
        means = classifier.class_means(found["feature"], found["label"], new)
        self._take_in(found, count, task)
        self.means = classifier.replace_rows(self.means, means, first=task.offset)
        self.counts = classifier.replace_rows(self.counts, count[list(new)], first=task.offset)
        self.classes = classes

    def _take_in(self, found: Mapping[str, Tensor], count: Tensor, task: Task) -> None:
        """Images of classes that come again: each mean is that of all its images. A run that was made before images
        were counted keeps its mean."""
        self.means, self.counts = self.means.clone(), self.counts.clone()
        for label in [label for label in task.labels if label < task.offset and self.counts[label]]:
            total = self.counts[label] + count[label]
            seen = self.counts[label] * self.means[label] + found["feature"][found["label"] == label].sum(0)
            self.means[label], self.counts[label] = seen / total, total

    def predictor(self, query: Query):
        rows = self.means[query.offset : query.offset + len(query.candidates)]
        means = F.normalize(rows, dim=1).to(self.frozen.tower.device)

        def predict(batch: Batch) -> Tensor:
            cosines = self.frozen.unit(batch) @ means.T
            return classifier.widen(cosines, classes=len(query.candidates), fill=-1.0)

        return predict

    def logits_of(self, scores: Float[Tensor, "images classes"]) -> Float[Tensor, "images classes"]:
        """Cosines times CLIP's logit scale, as CLIP weighs its own; of a ViT times that of heads on cosines."""
        return (heads.SCALE if self.clip is None else self.clip.scale.to(scores)) * scores

    def state_dict(self) -> dict[str, Any]:
        return {"means": self.means, "counts": self.counts, "classes": list(self.classes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.means, self.classes = state["means"], list(state["classes"])
        self.counts = state.get("counts", torch.zeros(len(self.means), dtype=torch.long))

    def export(self, folder: Path) -> str | None:
        """The pretrained model and one mean feature a class. Of a ViT nothing that others read."""
        return None if self.clip is None else export.save(self.clip, folder, self.classes, {"rows": self.means})

    def facts(self) -> dict[str, Any]:
        """Extra parameters, for the result card."""
        return {"extra_parameters": self.means.numel()}
