"""RAIL: ridge regression on frozen CLIP features, fused with CLIP's own answer only where that is a class learned.

Xu et al., Advancing Cross-domain Discriminability in Continual Learning of Vision-Language Models, NeurIPS 2024. An
image that CLIP takes for a class of a data set not learned yet is left to CLIP, so that zero-shot answers there stay
as they were; for others the regression's scores are mixed in.

Needs: 1.8 GB memory for the sums at the published width of 15,000, and as much on disk.

Knows the fusion. The regression is in `perdure.layers.ridge`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from perdure.families.clip import classifier, settings
from perdure.families.clip.frozen_tower import FrozenTower, OnFrozenTower
from perdure.layers import ridge
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.settings.config import Template
from perdure.types import Batch, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Prompts):
    """Settings of RAIL; the defaults are the published ones."""

    template: Template = "a photo of a {}."
    """Prompt of a class; `{}` stands for its name."""
    clean_names: bool = True
    """Put spaces for the underscores of class names."""
    form: Literal["primal", "dual"] = "primal"
    """`primal`: features go through a random layer. `dual`: a kernel with all features seen, which are kept."""
    width: Annotated[int, Field(ge=1)] = 15_000
    """Units of the random layer."""
    ridge: Annotated[float, Field(gt=0)] | None = None
    """Of the regression; none: 0.1, and 0.001 in the dual form."""
    gamma: Annotated[float, Field(gt=0)] = 0.1
    """Of the dual form's kernel ``exp(-gamma |a - b|^2)``."""
    fusion: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Weight of the regression where it is mixed in."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images at a time where features are computed; changes no result."""

    def bytes_needed(self) -> int:
        return 8 * self.width**2 if self.form == "primal" else 0


class Rail(OnFrozenTower, classifier.OfNames):
    """State: sums over all images (primal) or all unit features (dual), the weights, and the class names."""

    Config = Config
    answers = frozenset({"classify"})

    def __init__(self, config: Config, *, clip: Clip) -> None:
        classifier.check_template(config.template)
        self.config, self.clip = config, clip.requires_grad_(False)
        self.frozen = FrozenTower(self.clip)
        self.sums = ridge.Sums()
        self.expansion: Float[Tensor, "dim width"] | None = None
        self.kept: Float[Tensor, "images dim"] | None = None
        self.labels: Tensor | None = None
        self.weights: Float[Tensor, "width classes"] | None = None
        self.classes: list[str] = []

    def learn(self, task: Task, runtime: Runtime) -> None:
        config = self.config
        classifier.require_every_class(task)
        classes = classifier.extend_classes(self.classes, task)
        if config.form == "primal" and self.expansion is None:
            self.expansion = self._draw(runtime)
        found = self.frozen.pass_over(task.train, batch_size=config.batch_size, runtime=runtime, unit=True)
        classifier.require_every_class(task, found["label"])
        features, labels = found["feature"].double(), found["label"]
        if config.form == "primal":
            self.sums.add(features, ridge.one_hot(labels, len(classes)), self._hidden)
            self.weights = self.sums.solve(0.1 if config.ridge is None else config.ridge)
        else:
            self.kept = features if self.kept is None else torch.cat([self.kept, features])
            self.labels = labels if self.labels is None else torch.cat([self.labels, labels])
            system = kernel(self.kept, self.kept, gamma=config.gamma)
            system.diagonal().add_(0.001 if config.ridge is None else config.ridge)
            self.weights = torch.linalg.solve(system, ridge.one_hot(self.labels, len(classes)))
        self.classes = classes

    def _draw(self, runtime: Runtime) -> Float[Tensor, "dim width"]:
        """As torch starts a linear layer: uniform within one over the root of its inputs."""
        bound = self.clip.dim**-0.5
        drawn = torch.empty(self.clip.dim, self.config.width, dtype=torch.float64)
        return drawn.uniform_(-bound, bound, generator=runtime.generator("expansion"))

    def _hidden(self, features: Float[Tensor, "images dim"]) -> Float[Tensor, "images width"]:
        """What the weights are multiplied by, in float64."""
        if self.config.form == "dual":
            assert self.kept is not None
            return kernel(features.double(), self.kept.to(features.device), gamma=self.config.gamma)
        assert self.expansion is not None
        return F.relu(features.double() @ self.expansion.to(features.device))

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        texts = classifier.encode_prompts(
            self.clip,
            classifier.prompts(self.config.template, query.candidates, clean=self.config.clean_names),
        )
        known = 0 if self.weights is None else self.weights.shape[1]
        learned = max(min(query.offset + len(query.candidates), known) - query.offset, 0)
        weights = None
        if self.weights is not None and learned:
            weights = self.weights[:, query.offset : query.offset + learned].to(self.clip.device)

        def predict(batch: Batch) -> Tensor:
            images = self.frozen.unit(batch)
            shares = (self.clip.scale * images @ texts.T).double().softmax(dim=1)
            return shares if weights is None else self.fused(shares, self._hidden(images) @ weights)

        return predict

    def fused(
        self, shares: Float[Tensor, "images classes"], regressed: Float[Tensor, "images learned"]
    ) -> Float[Tensor, "images classes"]:
        """CLIP's probabilities, and where the first of them is a learned class the regression mixed in.

        Of three classes of which two are learned, ``[.2, .1, .7]`` stays; ``[.5, .2, .3]`` with ``[0, 1]`` becomes
        ``.2 [.5, .2, .3] + .8 [0, 1, 0]`` = ``[.1, .84, .06]``.
        """
        wide = F.pad(regressed, (0, shares.shape[1] - regressed.shape[1]))
        mixed = (1 - self.config.fusion) * shares + self.config.fusion * wide
        return torch.where((shares.argmax(1) < regressed.shape[1])[:, None], mixed, shares)

    def state_dict(self) -> dict[str, Any]:
        tensors = {
            "gram": self.sums.gram,
            "cross": self.sums.cross,
            "expansion": self.expansion,
            "kept": self.kept,
            "labels": self.labels,
            "weights": self.weights,
        }
        return {"classes": list(self.classes), **{n: t for n, t in tensors.items() if t is not None}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.classes = list(state["classes"])
        self.sums = ridge.Sums(state.get("gram"), state.get("cross"))
        self.expansion, self.kept, self.labels, self.weights = (
            state.get(name) for name in ("expansion", "kept", "labels", "weights")
        )

    def facts(self) -> dict[str, Any]:
        """Numbers kept beside CLIP, for the result card."""
        kept = [t for t in (self.sums.gram, self.sums.cross, self.expansion, self.kept, self.weights) if t is not None]
        return {"extra_parameters": sum(t.numel() for t in kept)}


def kernel(a: Float[Tensor, "rows dim"], b: Float[Tensor, "columns dim"], *, gamma: float) -> Tensor:
    """``exp(-gamma |a - b|^2)``, ``[rows columns]``."""
    return torch.exp(-gamma * torch.cdist(a, b) ** 2)
