"""BOFA: only CLIP's visual projection learns, in directions that earlier tasks leave free, beside Gaussian classes.

BOFA: Bridge-Layer Orthogonal Low-Rank Fusion for CLIP-Based Class-Incremental Learning, 2025. A task tunes the matrix
that takes the image tower's output to the joint space; from the second task on what it adds is kept within the
directions of least energy of earlier tasks' features, and the mean over tasks answers. Prototypes mix class means and
texts; a Gaussian classifier on the tower's output is added.

Needs: 4 GB GPU memory for ViT-B/16.

Knows the two stages and the fusion, odd choices of the published code included. Moments are in `moments`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from perdure import training
from perdure.errors import DataError, RecipeError
from perdure.families.class_incremental import backbone as backbones
from perdure.families.clip import classifier
from perdure.families.clip.frozen_tower import FrozenTower, OnFrozenTower
from perdure.layers.prompts import unit
from perdure.loading import Batches, ExampleBatches, TensorBatches
from perdure.methods.bofa.moments import Gaussians, free_directions, precision, second_moment
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.settings.config import Template
from perdure.types import Batch, Example, Query, Task

FIRST_EPOCHS = 6
"""Epochs in which the task's own Gaussian classifier learns beside the projection."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of BOFA; the defaults are the published ones."""

    templates: tuple[Template, ...] = ("a photo of a {}.",)
    """Prompts of a class: the first one trains, the mean over all answers."""
    clean_names: bool = True
    """Put spaces for the underscores of class names."""
    rank: Annotated[int, Field(ge=1)] = 64
    """Directions that a later task may change."""
    epochs: Annotated[int, Field(ge=1)] = 15
    """Over the whole projection; the learning rates fall to 0 as a cosine over them."""
    rank_epochs: Annotated[int, Field(ge=0)] = 2
    """After them, over the free directions alone (first task: over the whole projection)."""
    lr: Annotated[float, Field(gt=0)] = 0.05
    """Of the projection: SGD with momentum 0.9."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Of the projection, towards 0."""
    small_lr: Annotated[float, Field(gt=0)] = 0.001
    """Of the task's classifier and of the free directions."""
    small_weight_decay: Annotated[float, Field(ge=0)] = 0.001
    """Of both."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images a step."""
    gaussian: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Weight of the Gaussian classifier in an answer."""
    prototype_roles: Literal["official", "search"] = "official"
    """The published search for the share of texts in a prototype, and what then uses it, have the two roles swapped.
    `search`: means and texts keep the roles that they had in the search."""
    augment: Literal["crop_flip", "none"] = "crop_flip"
    """Random crops, mirrored half of the time; `none`: the tower runs once over a task's images."""


class Bofa(OnFrozenTower):
    """State: projections of each task and their mean, moments of each task, Gaussian classes, class means."""

    Config = Config
    answers = frozenset({"classify"})
    new_labels_only = "its Gaussian classes and its own classifier are made once, when a class first comes"

    def __init__(self, config: Config, *, clip: Clip) -> None:
        for template in config.templates:
            classifier.check_template(template)
        if not config.templates:
            raise RecipeError("there is no template", where="method.templates", expected="at least one")
        self.config, self.clip = config, clip.requires_grad_(False)
        self.frozen = FrozenTower(self.clip, of=("before the projection", self._pooled))
        self.start = self._projection()
        self.tuned = self.start.clone()
        """The whole projection as the last task's first stage left it."""
        self.projections: list[Tensor] = []
        self.moments: list[Tensor] = []
        self.means = self.start.new_zeros(0, self.start.shape[1])
        """Class means of the tower's output."""
        self.gaussians: Gaussians | None = None
        self.share = 0.0
        """Found by search on training images: how much of a prototype is which."""
        self.classes: list[str] = []

    def _projection(self) -> Float[Tensor, "dim inner"]:
        return self.clip.model.visual_projection.weight.detach().clone()

    def preprocess(self, example: Example, training: bool) -> Batch:
        return self._preprocessor(example, training)

    @property
    def _preprocessor(self) -> backbones.Preprocessor:
        return backbones.Preprocessor(self.clip.transform, self.config.augment)

    def inner(self, batch: Batch) -> Float[Tensor, "images inner"]:
        """The image tower's output before the projection."""
        return batch["inner"] if "inner" in batch else self.frozen.raw(batch)

    def _pooled(self, pixels: Tensor) -> Tensor:
        output: Any = self.clip.model.vision_model(pixels.to(self.clip.dtype))
        return output.pooler_output

    # -- learning ---------------------------------------------------------------------------------------

    def learn(self, task: Task, runtime: Runtime) -> None:
        classifier.require_every_class(task)
        if len(task.train) < 2:
            raise DataError("there is one training image", where=f"task '{task.name}'", expected="two or more")
        classes = classifier.extend_classes(self.classes, task)
        found = self._encode(task, runtime, stage="statistics")
        classifier.require_every_class(task, found["label"])
        inner, labels = found["inner"].to(self.start), found["label"]
        own = classifier.labels_of(task)
        unit_inner = unit(inner)
        own_means = classifier.class_means(unit_inner, labels, own)
        own_precision = precision(unit_inner, labels - task.offset, own_means)
        alone, before = Gaussians(own_means, own_precision), self.gaussians
        gaussians = alone if before is None else before.joined(own_means, own_precision)
        means = torch.cat([self.means[: task.offset], classifier.class_means(inner, labels, own)])
        texts = self._texts(classes, self.config.templates[:1])
        share = self.share or self._search(task, means, texts, found, runtime)
        moments = [*self.moments, second_moment(inner)]
        device = self.clip.device
        prototypes = self._prototypes(means.to(device), texts.to(device), share)
        tuned, added = self._train(task, prototypes, alone.linear(), runtime, known=found)
        self.projections = [*self.projections, added]
        self.tuned, self.moments, self.means, self.share = tuned, moments, means, share
        self.gaussians, self.classes = gaussians, classes

    def _encode(self, task: Task, runtime: Runtime, *, stage: str) -> dict[str, Tensor]:
        """The tower's output of all training images, augmented as in training."""
        if self.config.augment == "none":
            size = self.config.batch_size
            found = self.frozen.pass_over(task.train, batch_size=size, runtime=runtime, stage=stage)
            return {"inner": found.pop("feature"), **found}
        batches = self._augmented(task, runtime, stage, shuffle=False)
        return training.features(
            lambda batch: {"inner": self.inner(batch), "label": batch["label"]}, batches, runtime=runtime
        )

    def _search(self, task: Task, means: Tensor, texts: Tensor, found: Mapping[str, Tensor], runtime: Runtime) -> float:
        """The first of 21 shares of texts with the best accuracy on the task's training images."""
        if self.config.augment != "none":
            found = self._encode(task, runtime, stage="share")
        fused = self.fused().to(self.start)
        features = unit(found["inner"].to(self.start) @ fused.T)
        looks = unit(means @ self.start.T)
        accuracy = []
        for step in range(21):
            prototypes = (1 - step / 20) * looks + step / 20 * texts.to(looks)
            accuracy.append(float(((features @ prototypes.T).argmax(1) == found["label"]).double().mean()))
        return accuracy.index(max(accuracy)) / 20

    def _prototypes(self, means: Tensor, texts: Tensor, share: float) -> Float[Tensor, "classes dim"]:
        """Class means in the joint space and texts, mixed and not scaled again."""
        looks = unit(means @ self.start.to(means).T)
        share = share if self.config.prototype_roles == "official" else 1 - share
        return share * looks + (1 - share) * texts.to(looks)

    def require_names(self, names: Sequence[str]) -> None:
        texts = classifier.prompts(self.config.templates[0], names, clean=self.config.clean_names)
        classifier.require_distinct(self.clip, names, texts)

    def _texts(self, names: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "classes dim"]:
        """Unit features of the classes' prompts, averaged over templates."""
        summed = sum(
            classifier.encode_prompts(self.clip, classifier.prompts(t, names, clean=self.config.clean_names))
            for t in templates
        )
        return F.normalize(summed, dim=1) if len(templates) > 1 else summed  # type: ignore[arg-type,return-value]

    def _train(
        self,
        task: Task,
        prototypes: Float[Tensor, "seen dim"],
        head: tuple[Tensor, Tensor],
        runtime: Runtime,
        *,
        known: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The whole projection after the first stage, and the task's own: of later tasks within free directions."""
        start = self.start.to(self.clip.device)
        whole = torch.nn.Parameter(self.tuned.to(start).clone())
        batches = self._batches(task, runtime, known, "projection")
        self._tune_whole(whole, task, prototypes, head, batches, runtime)
        tuned = whole.detach()
        if not self.projections:
            return tuned.cpu(), tuned.cpu()
        directions = free_directions(torch.stack(self.moments), self.config.rank).to(start)
        change = torch.nn.Parameter((tuned - start) @ directions)
        if self.config.rank_epochs:
            batches = self._batches(task, runtime, known, "directions")
            self._tune_within(change, directions, prototypes, batches, runtime)
        return tuned.cpu(), (start + change.detach() @ directions.T).cpu()

    def _tune_whole(
        self,
        whole: torch.nn.Parameter,
        task: Task,
        prototypes: Tensor,
        head: tuple[Tensor, Tensor],
        batches: Batches,
        runtime: Runtime,
    ) -> None:
        """The first stage: the whole projection, and in the first epochs the task's own classifier beside it."""
        config = self.config
        weight, bias = (torch.nn.Parameter(t.to(whole).clone()) for t in head)

        def loss(batch: Batch) -> dict[str, Tensor]:
            inner = self._inner_of(batch, whole)
            main = self._misfit(inner @ whole.T, prototypes, batch["label"])
            if int(batch["epoch"][0]) >= FIRST_EPOCHS:
                return {"loss": main, "main": main.detach()}
            own = F.cross_entropy(F.linear(unit(inner), weight, bias), batch["label"] - task.offset)
            return {"loss": main + own, "main": main.detach(), "own": own.detach()}

        small = {"lr": config.small_lr, "weight_decay": config.small_weight_decay}
        groups = [
            training.Group(parameters={"projection": whole}),
            training.Group(parameters={"weight": weight, "bias": bias}, **small),
        ]
        epochs = config.epochs + (0 if self.projections else config.rank_epochs)
        how = self._fit(epochs, lr=config.lr, weight_decay=config.weight_decay, after=0)
        training.fit(loss, groups, batches, how, runtime=runtime, stage="projection")

    def _tune_within(
        self, change: torch.nn.Parameter, directions: Tensor, prototypes: Tensor, batches: Batches, runtime: Runtime
    ) -> None:
        """The second stage: only what the projection changes along the free directions."""
        config, start = self.config, self.start.to(change)

        def loss(batch: Batch) -> Tensor:
            projection = start + change @ directions.T
            return self._misfit(self._inner_of(batch, change) @ projection.T, prototypes, batch["label"])

        how = self._fit(
            config.rank_epochs, lr=config.small_lr, weight_decay=config.small_weight_decay, after=config.epochs
        )
        training.fit(loss, {"change": change}, batches, how, runtime=runtime, stage="directions")

    def _misfit(self, features: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy under CLIP's scale as it is stored, a logarithm, as published."""
        return F.cross_entropy(self.clip.model.logit_scale.detach() * unit(features) @ prototypes.T, labels)

    def _fit(self, epochs: int, *, lr: float, weight_decay: float, after: int) -> training.Fit:
        """SGD; the cosine over `epochs` of the settings goes on after them, and rises again."""
        period = self.config.epochs

        def cosine(epoch: int, _step: int) -> float:
            return (1 + math.cos(math.pi * (after + epoch) / period)) / 2

        return training.Fit(
            epochs=epochs, lr=lr, weight_decay=weight_decay, optimizer="sgd", momentum=0.9, schedule=cosine
        )

    @torch.no_grad()
    def _inner_of(self, batch: Batch, like: Tensor) -> Float[Tensor, "images inner"]:
        return self.inner(batch).to(like)

    def _batches(self, task: Task, runtime: Runtime, known: Mapping[str, Tensor], stage: str) -> Batches:
        """Augmented images; or what the tower made of them, where they stay as they are."""
        if self.config.augment == "none":
            rows = {"inner": known["inner"], "label": known["label"]}
            return _Numbered(TensorBatches(rows, batch_size=self.config.batch_size, runtime=runtime, stage=stage))
        return _Numbered(self._augmented(task, runtime, stage, shuffle=True))

    def _augmented(self, task: Task, runtime: Runtime, stage: str, *, shuffle: bool) -> ExampleBatches:
        return ExampleBatches(
            task.train,
            self._preprocessor,
            batch_size=self.config.batch_size,
            runtime=runtime,
            stage=stage,
            training=True,
            shuffle=shuffle,
        )

    # -- answering, state -------------------------------------------------------------------------------

    def fused(self) -> Float[Tensor, "dim inner"]:
        """The mean of all tasks' projections; CLIP's own before the first."""
        return torch.stack(self.projections).mean(0) if self.projections else self.start

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        first = query.offset
        last = min(first + len(query.candidates), len(self.classes))
        names, device = self.classes[first:last], self.clip.device
        if not names:
            template, clean = self.config.templates[0], self.config.clean_names
            start = self.start.to(device)
            return classifier.text_predictor(
                self.clip,
                template,
                query,
                clean=clean,
                seen=lambda batch: F.normalize(self.inner(batch) @ start.T, dim=1),
            )
        assert self.gaussians is not None
        fused = self.fused().to(device)
        means, texts = self.means[first:last].to(device), self._texts(names, self.config.templates)
        prototypes = self._prototypes(means, texts.to(device), self.share)
        weights, biases = (t[first:last].to(device) for t in self.gaussians.linear())
        share = self.config.gaussian

        @torch.no_grad()
        def predict(batch: Batch) -> Tensor:
            inner = self.inner(batch).to(fused)
            gaussian = F.linear(unit(inner), weights.to(inner), biases.to(inner))
            scores = share * gaussian + (1 - share) * unit(inner @ fused.T) @ prototypes.T
            return classifier.widen(scores, classes=len(query.candidates))

        return predict

    def state_dict(self) -> dict[str, Any]:
        return {
            "tuned": self.tuned,
            "projections": list(self.projections),
            "moments": list(self.moments),
            "means": self.means,
            "gaussians": self.gaussians.state_dict() if self.gaussians else None,
            "share": self.share,
            "classes": list(self.classes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tuned, self.means, self.share = state["tuned"], state["means"], float(state["share"])
        self.projections, self.moments = list(state["projections"]), list(state["moments"])
        self.gaussians, self.classes = Gaussians.from_state(state["gaussians"]), list(state["classes"])

    def facts(self) -> dict[str, Any]:
        """Numbers kept beside CLIP, for the result card."""
        kept = [self.tuned, *self.projections, *self.moments, self.means]
        return {"extra_parameters": sum(t.numel() for t in kept), "share": self.share}


class _Numbered(Batches):
    """Batches that carry the number of their epoch."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0):
        for batch, share in self.batches.epoch(epoch, start=start):
            if batch is not None:
                batch = {**batch, "epoch": batch["label"].new_full((len(batch["label"]),), epoch)}
            yield batch, share
