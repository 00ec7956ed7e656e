"""RanPAC: random projections of frozen features, and ridge regression over all that was seen.

McDonnell et al., RanPAC: Random Projections and Pre-trained Models for Continual Learning, NeurIPS 2023. Features go
through a fixed random matrix and a ReLU; sums of products over all tasks give the weights of every class at once, so
that the order of tasks does not matter. Optionally adapters learn the first task, and stay as they are.

Needs: 0.8 GB memory for the sums at the published width of 10,000, and as much on disk.

Knows sums, ridges and the first session. The regression is in `perdure.layers.ridge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from perdure.families.class_incremental import backbone as backbones
from perdure.families.class_incremental import first_session, tuned
from perdure.families.clip import classifier
from perdure.families.clip.frozen_tower import FrozenTower, OnFrozenTower
from perdure.layers import ridge
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task

RIDGES = tuple(10.0**power for power in range(-8, 9))
"""Ridges that are tried."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of RanPAC; the defaults are the published ones without a first session."""

    projection_dim: Annotated[int, Field(ge=0)] = 10_000
    """Width of the random projection; 0: the features as they are, without ReLU."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of a task's images, by chance, on which its ridge is chosen."""
    ridge_tie: Literal["first", "largest"] = "first"
    """`first` of the ridges with the least error, as published; `largest` of those within a millionth of it, which
    does not depend on rounding."""
    score: Literal["dot", "cosine"] = "dot"
    """`dot` as published; `cosine`: the angle to a class's weights, as another library has it (PILOT)."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images at a time where features are computed; changes no result."""
    first_session: Literal["none", "adapter", "ssf", "vpt_deep"] = "none"
    """What learns the first task and is frozen afterwards: adapters beside the MLPs, scales and shifts of features, or
    prompts in every block. Takes a plain vision transformer."""
    epochs: Annotated[int, Field(ge=1)] = 20
    """Of the first session."""
    lr: Annotated[float, Field(gt=0)] = 0.01
    """Of the first session: SGD with momentum 0.9; falls to 0 as a cosine, epoch by epoch."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """Of the first session."""
    session_batch_size: Annotated[int, Field(ge=1)] = 48
    """Images a step of the first session."""
    augment: Literal["crop_flip", "none"] = "crop_flip"
    """Of the first session's images: random crops of 5 to 100 % of the area, mirrored half of the time."""
    bottleneck: Annotated[int, Field(ge=1)] = 64
    """Width of an adapter."""
    adapter_scale: Annotated[float, Field(gt=0)] = 0.1
    """Factor of what an adapter adds."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """In an adapter, while it learns."""
    prompts: Annotated[int, Field(ge=1)] = 5
    """Tokens a block of `vpt_deep`."""

    def misfits(self, models):
        clips = [f"models.{role}" for role, (name, _) in models.items() if name in ("clip", "clip_resnet")]
        if clips and self.first_session != "none":
            yield "first_session", f"is {self.first_session}, and {clips[0]} is a CLIP; set none, or give `models.vit`"

    def passes(self) -> list[dict[str, Any]]:
        """What is trained by steps (`perdure.recipe.plan`): the first session alone."""
        batch = {"epochs": self.epochs, "batch_size": self.session_batch_size}
        return [] if self.first_session == "none" else [{"setting": "epochs", "first_task_only": True} | batch]

    def bytes_needed(self) -> int:
        return 8 * self.projection_dim**2


class Ranpac(OnFrozenTower):
    """State: sums over all images seen, the random projection, the weights, and what the first session learned."""

    Config = Config
    answers = frozenset({"classify"})
    one_role_of = frozenset({"clip", "vit", "backbone"})

    def __init__(
        self,
        config: Config,
        *,
        clip: classifier.ImageTower | None = None,
        vit: classifier.ImageTower | None = None,
        backbone: classifier.ImageTower | None = None,
    ) -> None:
        tower: classifier.ImageTower = tuned.one_of(clip=clip, vit=vit, backbone=backbone)
        self.config, self.backbone = config, tower
        self.sums = ridge.Sums()
        self.projection: Float[Tensor, "dim width"] | None = None
        self.weights: Float[Tensor, "width classes"] | None = None
        self.ridges: list[float] = []
        """One a task, as chosen when it was learned."""
        self.classes: list[str] = []
        self.session = session = first_session.make(config, tower)
        self.frozen = FrozenTower(tower, beside=session.state_dict if session else None)

    def preprocess(self, example: Example, training: bool) -> Batch:
        return backbones.Preprocessor(self.backbone.transform, self.config.augment)(example, training)

    def learn(self, task: Task, runtime: Runtime) -> None:
        classifier.require_every_class(task)
        classes = classifier.extend_classes(self.classes, task)
        if self.session is not None and not self.ridges:
            self.session.learn(task, self.preprocess, self.config, runtime)
        if self.projection is None:
            self.projection = self._draw(runtime)
        size = self.config.batch_size
        found = self.frozen.pass_over(task.train, batch_size=size, runtime=runtime)
        classifier.require_every_class(task, found["label"])
        features, labels = found["feature"].double(), found["label"]
        order = runtime.permutation(len(labels), "holdout")
        chosen = self._ridge(features[order], labels[order], task)
        self.sums.add(features, ridge.one_hot(labels, len(classes)), self._expand)
        self.weights = self.sums.solve(chosen)
        self.ridges, self.classes = [*self.ridges, chosen], classes
        runtime.log("ridge", chosen=chosen)

    def _draw(self, runtime: Runtime) -> Tensor:
        shape = (self.backbone.dim, self.config.projection_dim)
        return runtime.normal(shape, "projection", dtype=torch.float64)

    def _expand(self, features: Float[Tensor, "images dim"]) -> Float[Tensor, "images width"]:
        """ReLU of the projected features, in float64."""
        assert self.projection is not None
        wide = features.double()
        return F.relu(wide @ self.projection.to(wide.device)) if self.config.projection_dim else wide

    def _ridge(self, features: Tensor, labels: Tensor, task: Task) -> float:
        """The ridge whose weights of this task alone fit its held back images best."""
        taught = classifier.Taught(task)
        targets = ridge.one_hot(taught.places(labels), len(taught.labels))
        fit = int(len(labels) * (1 - self.config.holdout))
        errors = ridge.errors(features, targets, RIDGES, fit=fit, expand=self._expand)
        return ridge.smallest(errors, RIDGES, slack=1e-6 if self.config.ridge_tie == "largest" else 0.0)

    def predictor(self, query: Query):
        known = 0 if self.weights is None else self.weights.shape[1]
        columns = slice(query.offset, min(query.offset + len(query.candidates), known))
        weights = None if self.weights is None else self.weights[:, columns].to(self.backbone.device)
        if weights is not None and self.config.score == "cosine":
            weights = F.normalize(weights, dim=0)

        def predict(batch: Batch) -> Tensor:
            features = self.frozen.raw(batch)
            if weights is None:
                return features.new_zeros(len(features), len(query.candidates))
            hidden = self._expand(features)
            hidden = F.normalize(hidden, dim=1) if self.config.score == "cosine" else hidden
            return classifier.widen(hidden @ weights, classes=len(query.candidates))

        return predict

    def state_dict(self) -> dict[str, Any]:
        state = {"classes": list(self.classes), "ridges": list(self.ridges)}
        if self.weights is not None:
            tensors = {"gram": self.sums.gram, "cross": self.sums.cross, "weights": self.weights}
            state |= {**tensors, "projection": self.projection}
        return state if self.session is None else state | {"session": self.session.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.classes, self.ridges = list(state["classes"]), list(state["ridges"])
        self.sums = ridge.Sums(state.get("gram"), state.get("cross"))
        self.weights, self.projection = state.get("weights"), state.get("projection")
        if self.session is not None:
            self.session.load_state_dict(state["session"])

    def facts(self) -> dict[str, Any]:
        """Numbers kept beside the backbone, for the result card."""
        kept = [t for t in (self.sums.gram, self.sums.cross, self.projection) if t is not None]
        return {"extra_parameters": sum(t.numel() for t in kept), "ridges": self.ridges}
