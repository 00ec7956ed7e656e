"""RAPF: frozen CLIP and one linear adapter; Gaussian replay of old classes, and fusion in the old singular basis.

Huang et al., Class-Incremental Learning with CLIP: Adaptive Representation Adjustment and Parameter Fusion,
ECCV 2024. Only the adapter is trained. Image and text features are computed once a task, each class's
Cholesky factor once. Differs from the published code where that fails: the adapter's size is the model's, the
margin is a setting, a class may have one image, and an adapter that did not move is not divided by zero.

Needs: 4 GB GPU memory for ViT-B/16, or a CPU.

Knows the adapter, its losses and its state. Does not know where images come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from perdure import training
from perdure.checkpoint import stored_bytes
from perdure.families.clip import classifier, export, settings
from perdure.families.clip.frozen_tower import FrozenTower, OnFrozenTower
from perdure.loading import TensorBatches
from perdure.methods.rapf.fusion import fuse_adapters
from perdure.methods.rapf.gaussians import (
    cholesky_factors,
    class_statistics,
    hard_pairs,
    pair_hinge,
    sample,
)
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Prompts):
    """Settings of RAPF; the defaults are the paper's for CIFAR-100 in ten tasks of ten classes."""

    epochs: Annotated[int, Field(ge=1)] = 15
    """Passes over a task's features."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of Adam."""
    milestones: tuple[int, ...] = (4, 10)
    """Epochs after which the learning rate is multiplied by `gamma`."""
    gamma: Annotated[float, Field(gt=0)] = 0.1
    """Factor of the learning rate at each milestone."""
    batch_size: Annotated[int, Field(ge=1)] = 100
    """Images a step; samples of old classes are added to them."""
    encode_batch_size: Annotated[int, Field(ge=1)] = 128
    """Images at a time where features are computed; changes no result."""
    k: Annotated[int, Field(ge=1)] = 2
    """Old classes replayed in each step."""
    beta: Annotated[float, Field(ge=0)] = 2.0
    """Amount of replay: 10 beta samples of each replayed class and 20 beta of each hard pair, a step."""
    n_replay: Annotated[int, Field(ge=0)] | None = None
    """Samples of each replayed class; None: 10 beta, rounded down."""
    n_pair: Annotated[int, Field(ge=0)] | None = None
    """Samples of each hard pair's old class; None: 20 beta, rounded down."""
    threshold: Annotated[float, Field(ge=0)] = 0.55
    """Old and new classes whose text features (unit length) are nearer than this are a hard pair."""
    margin: float = 0.1
    """Margin of the hinge between the texts of a hard pair (cosine)."""
    mix_bias: Annotated[float, Field(ge=0)] = 0.6
    """Least share of the new adapter in the fusion; 1 or more takes the new adapter alone."""
    shrinkage: bool = False
    """Enlarge covariances before sampling; for data sets with few images a class."""


class Rapf(OnFrozenTower, classifier.OfNames):
    """State: the adapter, and each class's mean and Cholesky factor in raw feature space; those of a class that comes
    again stay as they were."""

    Config = Config
    answers = frozenset({"classify"})
    not_merged = "it fuses its linear map by a rule of its own"
    scores_are = "logits"

    def __init__(self, config: Config, *, clip: Clip) -> None:
        classifier.check_template(config.template)
        self.config, self.clip = config, clip.requires_grad_(False)
        self.frozen = FrozenTower(self.clip)
        dim, dtype = clip.dim, clip.dtype
        self.adapter = nn.Linear(dim, dim, bias=False, dtype=dtype).weight.detach()
        self.classes: list[str] = []
        self.means = torch.zeros(0, dim, dtype=dtype)
        self.factors = torch.zeros(0, dim, dim, dtype=dtype)

    def learn(self, task: Task, runtime: Runtime) -> None:
        config, first, device = self.config, task.offset, runtime.device
        classifier.require_every_class(task)
        classes = classifier.extend_classes(self.classes, task)
        features = self.frozen.pass_over(task.train, batch_size=config.encode_batch_size, runtime=runtime)
        texts = classifier.encode_prompts(self.clip, self._prompts(classes))
        old = self.adapter.to(device)
        new = self._train(old, features, texts, first, runtime)
        classifier.require_every_class(task, features["label"])
        means, covariances = class_statistics(features["feature"], features["label"], classifier.labels_of(task))
        factors = cholesky_factors(covariances, shrinkage=config.shrinkage)
        self.adapter = (fuse_adapters(old, new, mix_bias=config.mix_bias) if first else new).cpu()
        self.means = classifier.replace_rows(self.means, means, first=first)
        self.factors = classifier.replace_rows(self.factors, factors, first=first)
        self.classes = classes

    def predictor(self, query: Query):
        texts = classifier.encode_prompts(self.clip, self._prompts(query.candidates))

        def predict(batch: Batch) -> Tensor:
            features = self.frozen.raw(batch)
            return _logits(features, self.adapter.to(features), texts, self.clip.scale)

        return predict

    def state_dict(self) -> dict[str, Any]:
        return {
            "adapter": self.adapter,
            "means": self.means,
            "factors": self.factors,
            "classes": list(self.classes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.adapter, self.means, self.factors = state["adapter"], state["means"], state["factors"]
        self.classes = list(state["classes"])

    def export(self, folder: Path) -> str:
        """The pretrained model, the linear map of its image features, and the classes."""
        template, clean = self.config.template, self.config.clean_names
        return export.save_prompted(
            self.clip, folder, self.classes, template=template, clean=clean, adapter=self.adapter
        )

    def facts(self) -> dict[str, Any]:
        """Extra parameters and what is stored of old classes, for the result card."""
        return {
            "extra_parameters": self.adapter.numel(),
            "stored_bytes": stored_bytes([self.means, self.factors]),
        }

    def _prompts(self, names: Sequence[str]) -> list[str]:
        return classifier.prompts(self.config.template, names, clean=self.config.clean_names)

    def _train(
        self, old: Tensor, features: Mapping[str, Tensor], texts: Tensor, first: int, runtime: Runtime
    ) -> Tensor:
        """The adapter after the task, before fusion."""
        config = self.config
        pairs = hard_pairs(texts, first=first, threshold=config.threshold)
        runtime.log("pairs", stage="train", pairs=pairs)
        adapter = nn.Parameter(old.clone())
        now = {name: features[name] for name in ("feature", "label")}
        batches = _WithOldClasses(
            TensorBatches(now, batch_size=config.batch_size, runtime=runtime, stage="train"),
            means=self.means[:first].to(runtime.device),
            factors=self.factors[:first].to(runtime.device),
            pairs=pairs,
            config=config,
        )
        settings = training.Fit(
            epochs=config.epochs,
            lr=config.lr,
            schedule="multistep",
            milestones=config.milestones,
            gamma=config.gamma,
        )
        training.fit(
            lambda batch: rapf_loss(batch, adapter, texts, scale=self.clip.scale, margin=config.margin),
            {"adapter": adapter},
            batches,
            settings,
            runtime=runtime,
            stage="train",
        )
        return adapter.detach()


def rapf_loss(
    batch: Batch, adapter: Float[Tensor, "out in"], texts: Float[Tensor, "classes out"], *, scale: Tensor, margin: float
) -> dict[str, Tensor]:
    """Cross-entropy over images and replayed samples, plus the hinge over samples of hard pairs.

    The batch holds ``feature``, ``label``; ``replay``, ``replay_label`` and ``pair``, ``pair_own``, ``pair_other``
    may be absent.
    """
    features, labels = batch["feature"], batch["label"]
    if "replay" in batch:
        features = torch.cat([features, batch["replay"]])
        labels = torch.cat([labels, batch["replay_label"]])
    entropy = F.cross_entropy(_logits(features, adapter, texts, scale), labels)
    if "pair" not in batch:
        return {"loss": entropy}
    hinge = pair_hinge(batch["pair"] @ adapter.T, texts, batch["pair_own"], batch["pair_other"], margin=margin)
    return {"loss": entropy + hinge, "cross_entropy": entropy, "hinge": hinge}


def _logits(features: Tensor, adapter: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    return scale * F.normalize(features @ adapter.T, dim=1) @ texts.T


class _WithOldClasses:
    """Batches of the task's features, each with samples of old classes; the noise is keyed by epoch and step.

    Step b of an epoch replays the classes at places ``(b k + j) mod old``, j < k, of an order of the epoch.
    """

    def __init__(
        self, batches: TensorBatches, *, means: Tensor, factors: Tensor, pairs: Tensor, config: Config
    ) -> None:
        self.batches, self.means, self.factors, self.pairs = batches, means, factors, pairs.to(means.device)
        self.k = config.k
        self.n_replay = int(10 * config.beta) if config.n_replay is None else config.n_replay
        self.n_pair = int(20 * config.beta) if config.n_pair is None else config.n_pair

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch | None, float]]:
        old = len(self.means)
        order = self.batches.runtime.permutation(old, "classes", epoch) if old else None
        for step, (batch, share) in enumerate(self.batches.epoch(epoch, start), start):
            if order is None or batch is None:
                yield batch, share
                continue
            chosen = order[(step * self.k + torch.arange(self.k)) % old]
            yield {**batch, **self._replay(chosen, epoch, step), **self._pairs(epoch, step)}, share

    def _replay(self, chosen: Tensor, epoch: int, step: int) -> dict[str, Tensor]:
        if not self.n_replay:
            return {}
        labels = chosen.to(self.means.device, non_blocking=True)
        drawn = self._draw(labels, self.n_replay, "replay", epoch, step)
        return {"replay": drawn, "replay_label": labels.repeat_interleave(self.n_replay)}

    def _pairs(self, epoch: int, step: int) -> dict[str, Tensor]:
        if not (self.n_pair and len(self.pairs)):
            return {}
        drawn = self._draw(self.pairs[:, 0], self.n_pair, "pairs", epoch, step)
        own, other = self.pairs.repeat_interleave(self.n_pair, dim=0).unbind(1)
        return {"pair": drawn, "pair_own": own, "pair_other": other}

    def _draw(self, labels: Tensor, each: int, *key: Any) -> Tensor:
        shape = (len(labels), each, self.means.shape[1])
        noise = self.batches.runtime.normal(shape, *key, dtype=self.means.dtype)
        return sample(self.means, self.factors, labels, noise.to(self.means.device, non_blocking=True))
