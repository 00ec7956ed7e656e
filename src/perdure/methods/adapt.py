"""ADAPT: class means and one covariance of past test features make a Gaussian classifier; closed form, no gradient.

Zhang et al., Backpropagation-Free Test-Time Adaptation via Probabilistic Gaussian Alignment, NeurIPS 2025. Online, each
image enters a bank and is answered after it has; transductive, a whole test set is answered at once.

Needs: 2 GB GPU memory for ViT-B/16.

Knows banks, means and the covariance. Features and what views say are in `perdure.families.test_time`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from perdure.families.test_time import evidence, frozen, settings
from perdure.families.test_time.evidence import Evidence
from perdure.models.clip import Clip
from perdure.types import Query

SINGULAR = 1e-12
"""Total variance, as a share of the features' squares, under which the covariance counts as none."""


@dataclass(frozen=True, kw_only=True)
class Config(settings.Continual, settings.FewViews, settings.Prompted):
    """Settings of ADAPT."""

    mode: Literal["online", "transductive"] = "online"
    """Image after image, or a whole test set at once."""
    bank_size: Annotated[int, Field(ge=1)] | None = None
    """Images kept of each class; null: 16 online, 6 transductive."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Weight of a bank's mean against the class's text feature."""
    scale: Annotated[float, Field(gt=0)] = 60.0
    """The larger, the nearer to zero-shot. The paper sets it by test set (10 to 100); 60 for all is ours."""
    logit_scale: Annotated[float, Field(gt=0)] = 100.0
    """What cosines are multiplied by."""
    similarity: Literal["published", "current"] = "published"
    """What an image that entered no bank is compared with: as in the published code the last image that did lends its
    similarities, or its own."""
    descriptions: Path | None = None
    """JSON, class name -> descriptions: the prompt then reads `name, description`, averaged over them (the paper: 50
    from a language model)."""

    def faults(self):
        yield from settings.views_faults(self)

    @property
    def capacity(self) -> int:
        """Images kept of each class."""
        return self.bank_size or (16 if self.mode == "online" else 6)


class Adapt(frozen.OnFeatures):
    """Banks fill up over a test set and begin empty with the next."""

    Config = Config
    answers = frozenset({"classify"})
    not_updatable = "it learns nothing from training data"

    def __init__(self, config: Config, *, clip: Clip) -> None:
        super().__init__(config, clip)
        self.whole_set = config.mode == "transductive"
        self.descriptions = frozen.read_descriptions(config.descriptions)

    def texts(self, candidates: tuple[str, ...]) -> Tensor:
        return frozen.mean_texts(self.clip, self.config, candidates, self.descriptions)

    def begin(self, query: Query, texts: Tensor) -> Gaussian | None:
        config = self.config
        if self.whole_set:
            return None
        return Gaussian(texts, config.capacity, config.alpha, config.scale, current=config.similarity == "current")

    def answer(self, state: Gaussian | None, rows: Mapping[str, Tensor], texts: Tensor) -> Tensor:
        config, features = self.config, rows["feature"]
        views = features.shape[1]
        kept = 1 if views == 1 else max(evidence.share_of(views, config.selection), 1)
        if state is not None:
            return state.answer(evidence.gather(features, texts, scale=config.logit_scale, kept=kept))
        seen = evidence.gather(features, texts, scale=config.logit_scale, kept=kept, pool="logits")
        return transductive(seen, texts, config.capacity, config.alpha, config.scale).logits


# -- the classifier -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """The Gaussian classifier with one covariance for all classes, by half of its precision:
    ``G_c = -ln C + h(f) . h(mean_c) - |h(mean_c)|^2 / 2`` with ``h(x) = sqrt(D) L^-1 x``."""

    factor: Float[Tensor, "dim dim"]
    """L, lower triangular: ``L L^T = (n - 1) S + trace(S) I``; 0 where there is no variance."""
    halves: Float[Tensor, "dim classes"]
    """h of the class means."""

    def scores(self, features: Float[Tensor, "images dim"]) -> Float[Tensor, "images classes"]:
        """G of some features."""
        return self.half(features.T).T @ self.halves + self.bias

    def half(self, columns: Float[Tensor, "dim n"]) -> Float[Tensor, "dim n"]:
        """h of some vectors."""
        if not float(self.factor[0, 0]):  # the pseudoinverse of 0 is 0
            return torch.zeros_like(columns)
        return math.sqrt(len(columns)) * torch.linalg.solve_triangular(self.factor, columns, upper=False)

    @property
    def bias(self) -> Float[Tensor, " classes"]:
        return -math.log(self.halves.shape[1]) - 0.5 * self.halves.square().sum(0)

    @property
    def weight(self) -> Float[Tensor, "classes dim"]:
        """``W = means precision``: what images are multiplied with, written out."""
        if not float(self.factor[0, 0]):
            return torch.zeros_like(self.halves.T)
        upper = self.factor.T
        return math.sqrt(len(upper)) * torch.linalg.solve_triangular(upper, self.halves, upper=True).T


def fit(means: Float[Tensor, "classes dim"], scatter: Float[Tensor, "dim dim"], count: int) -> Fitted:
    """The classifier of class means and ``(count - 1) S``, S the covariance of the kept features, each less its class's
    mean; of one feature S is the unit matrix."""
    dim = means.shape[1]
    unit = torch.eye(dim, dtype=means.dtype, device=means.device)
    if count == 1:
        factor = math.sqrt(dim) * unit
    else:
        trace = scatter.trace() / (count - 1)
        if float(trace) <= SINGULAR:
            return Fitted(torch.zeros_like(unit), torch.zeros_like(means.T))
        factor = torch.linalg.cholesky((scatter + trace * torch.eye(dim).to(scatter)).to(means.dtype))
    made = Fitted(factor, torch.zeros_like(means.T))
    return Fitted(factor, made.half(means.T))


def combine(
    logits: Float[Tensor, "*images classes"],
    gaussian: Float[Tensor, "*images classes"],
    votes: Float[Tensor, "*images classes"],
    kept: int,
    scale: float,
) -> Float[Tensor, "*images classes"]:
    """``z exp(u / scale)`` of ``u = log softmax(G) + scale / (2 kept) votes``, the highest u made 0."""
    u = gaussian.log_softmax(-1) + scale / (2 * kept) * votes
    return logits * ((u - u.amax(-1, keepdim=True)) / scale).exp()


@dataclass(frozen=True)
class Answered:
    """What the classifier said of some images."""

    logits: Float[Tensor, "images classes"]
    gaussian: Float[Tensor, "images classes"]
    """Before the softmax."""
    updated: list[bool]
    """Whether an image entered its bank."""


# -- online -------------------------------------------------------------------------------------------------


class Gaussian:
    """Banks, means and classifier of one test set, image by image.

    Sums over a bank, and the outer products of what differs from its mean, are kept for each class: an image changes
    those of one class alone.
    """

    def __init__(
        self, texts: Float[Tensor, "classes dim"], capacity: int, alpha: float, scale: float, *, current: bool = False
    ) -> None:
        self.texts, self.capacity, self.alpha, self.scale, self.current = texts, capacity, alpha, scale, current
        classes, dim = texts.shape
        self.means = texts.clone()
        self.keys = texts.new_zeros(classes, capacity, dim)
        self.own = texts.new_zeros(classes, capacity)
        """Probability of an entry's class."""
        self.entropy = torch.full((classes, capacity), math.inf, dtype=torch.float64)
        """Infinite where a place is empty. On the CPU, as numbers that decide are."""
        self.numbers = torch.full((classes, capacity), -1, dtype=torch.int64)
        wide = torch.float32 if texts.device.type == "mps" else torch.float64  # sums that change a thousand times
        self.scatter = torch.zeros(dim, dim, dtype=wide, device=texts.device)
        self.rest = torch.zeros(classes, dim, dtype=wide, device=texts.device)
        """Sum of what differs from the mean, by class."""
        self.fitted = Fitted(texts.new_zeros(dim, dim), texts.new_zeros(dim, classes))
        self.votes = texts.new_zeros(classes)
        """Of the last image that entered a bank."""
        self.seen = self.filled = 0

    def answer(self, seen: Evidence) -> Float[Tensor, "images classes"]:
        """Logits of images in their order, each after it has entered a bank, if it has."""
        return self.answers(seen).logits

    def answers(self, seen: Evidence) -> Answered:
        labels, entropies = seen.label.tolist(), seen.entropy.double().tolist()
        logits, gaussians, updated = [], [], []
        for i, label in enumerate(labels):
            feature = seen.feature[i]
            entered = self._enter(label, entropies[i], feature, seen.probabilities[i, label])
            if entered:
                self._refit(label, feature, seen.probabilities[i, label])
            if entered or self.current:
                self.votes = ((self.keys @ feature) * self.own).sum(1)
            gaussian = self.fitted.scores(feature[None])[0]
            logits.append(combine(seen.logits[i], gaussian, self.votes, self.filled, self.scale))
            gaussians.append(gaussian)
            updated.append(entered)
        return Answered(torch.stack(logits), torch.stack(gaussians), updated)

    def _enter(self, label: int, h: float, feature: Tensor, probability: Tensor) -> bool:
        """Into the first empty place of a bank, or that of the highest entropy if this is lower."""
        place = int(self.entropy[label].argmax())  # the first empty one, else the first of the highest
        if not h < float(self.entropy[label, place]):
            self.seen += 1
            return False
        count = self._count(label)
        self._add_differences(label, count, -1)
        self.filled += math.isinf(float(self.entropy[label, place]))
        self.keys[label, place], self.own[label, place] = feature, probability
        self.entropy[label, place], self.numbers[label, place] = h, self.seen
        self.seen += 1
        return True

    def _refit(self, label: int, feature: Tensor, probability: Tensor) -> None:
        """The mean of one class, the current image counted once more as published, and the classifier."""
        count = self._count(label)
        keys, own = self.keys[label, :count], self.own[label, :count]
        mean = (own @ keys + probability * feature) / (own.sum() + probability)
        self.means[label] = self.alpha * mean + (1 - self.alpha) * self.texts[label]
        self._add_differences(label, count, 1)
        total = self.rest.sum(0)
        self.fitted = fit(self.means, self.scatter - torch.outer(total, total) / self.filled, self.filled)

    def _add_differences(self, label: int, count: int, sign: int) -> None:
        differences = self.keys[label, :count].to(self.scatter) - self.means[label].to(self.scatter)
        self.scatter.addmm_(differences.T, differences, alpha=sign)
        self.rest[label] = differences.sum(0) if sign > 0 else 0

    def _count(self, label: int) -> int:
        return int(self.entropy[label].isfinite().sum())

    TENSORS = ("means", "keys", "own", "entropy", "numbers", "scatter", "rest", "votes")

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: getattr(self, name).cpu() for name in self.TENSORS}
        state |= {"factor": self.fitted.factor.cpu(), "halves": self.fitted.halves.cpu()}
        return state | {"seen": self.seen, "filled": self.filled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in self.TENSORS:
            setattr(self, name, state[name].clone().to(getattr(self, name).device))
        self.fitted = Fitted(*(state[name].clone().to(self.means) for name in ("factor", "halves")))
        self.seen, self.filled = state["seen"], state["filled"]


# -- transductive -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """The classifier of a whole test set, and its answers."""

    logits: Float[Tensor, "images classes"]
    gaussian: Float[Tensor, "images classes"]
    means: Float[Tensor, "classes dim"]
    fitted: Fitted


def transductive(
    seen: Evidence, texts: Float[Tensor, "classes dim"], capacity: int, alpha: float, scale: float
) -> Whole:
    """All images of a test set at once: each class's surest go into its bank, and all images into its mean."""
    classes, p = len(texts), seen.probabilities
    means, differences, keys, owners = texts.clone(), [], [], []
    every, weights = p.T @ seen.feature, p.sum(0)
    for c in range(classes):
        found = (seen.label == c).nonzero()[:, 0]
        if not len(found):
            continue
        bank = found[seen.entropy[found].argsort(stable=True)[:capacity]]
        f, own = seen.feature[bank], p[bank, c]
        mean = (own @ f + every[c]) / (own.sum() + weights[c])
        means[c] = alpha * mean + (1 - alpha) * texts[c]
        differences.append(f - means[c])
        keys.append(bank)
        owners.append(c)
    rows, index = torch.cat(differences), torch.cat(keys)
    centred = rows - rows.mean(0)
    fitted = fit(means, centred.T @ centred, len(rows))
    owner = torch.tensor(owners, device=index.device).repeat_interleave(
        torch.tensor([len(bank) for bank in keys], device=index.device)
    )
    similar = (seen.feature @ seen.feature[index].T) * p[index, owner]
    votes = torch.zeros_like(p).index_add_(1, owner, similar)
    gaussian = fitted.scores(seen.feature)
    return Whole(combine(seen.logits, gaussian, votes, len(rows), scale), gaussian, means, fitted)
