"""A linear layer with one low-rank update a task, and how the updates of all tasks come together at test.

Knows one layer, features and means. Does not know models or tasks.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Fuse = Literal["factors", "products"]


class SlotLinear(nn.Module):
    """``y = W x + s B_t A_t drop(x)`` while task t is learned; at test the updates of all tasks, fused or weighted.

    Args:
        base: the frozen layer.
        scale: s.
        dropout: of the input, while learning.
    """

    def __init__(self, base: nn.Linear, *, scale: float, dropout: float) -> None:
        super().__init__()
        self.base_layer, self.scale, self.dropout = base, scale, dropout
        self.a, self.b = nn.ParameterList(), nn.ParameterList()
        self.learning: int | None = None
        """The task whose update alone acts."""
        self.fused: tuple[Tensor, Tensor] | None = None
        """(B, A) of one update for all questions; see `fuse`."""
        self.weights: Float[Tensor, "questions tasks"] | None = None
        """Of the updates, question by question."""

    def add(self, rank: int) -> None:
        """A slot for one more task, of zeros."""
        like = {"device": self.base_layer.weight.device, "dtype": torch.float32}
        self.a.append(nn.Parameter(torch.zeros(rank, self.base_layer.in_features, **like)))
        self.b.append(nn.Parameter(torch.zeros(self.base_layer.out_features, rank, **like)))

    def fuse(self, how: Fuse) -> None:
        """One update for all questions. ``factors``: ``(sum B)(sum A)``, as published, with terms across tasks;
        ``products``: ``sum B A``."""
        a, b = [p.detach() for p in self.a], [p.detach() for p in self.b]
        if not a:
            self.fused = None
        elif how == "factors":
            self.fused = torch.stack(b).sum(0), torch.stack(a).sum(0)
        else:
            self.fused = torch.cat(b, dim=1), torch.cat(a, dim=0)

    def forward(self, x: Float[Tensor, "questions tokens inputs"]) -> Float[Tensor, "questions tokens outputs"]:
        y = self.base_layer(x)
        if self.learning is not None:
            t, dropped = self.learning, F.dropout(x.float(), self.dropout, self.training)
            return y + (self.scale * F.linear(F.linear(dropped, self.a[t]), self.b[t])).to(y.dtype)
        if self.weights is not None:
            return y + (self.scale * self._weighted(x.float(), self.weights)).to(y.dtype)
        if self.fused is not None:
            b, a = self.fused
            return y + (self.scale * F.linear(F.linear(x.float(), a), b)).to(y.dtype)
        return y

    def _weighted(self, x: Tensor, weights: Float[Tensor, "questions tasks"]) -> Tensor:
        """``sum_i w_i B_i A_i x``, each question with its own weights."""
        updates = [F.linear(F.linear(x, a), b) * w[:, None, None] for a, b, w in zip(self.a, self.b, weights.T)]
        return torch.stack(updates).sum(0)


def route(
    image: Float[Tensor, "questions dim"],
    text: Float[Tensor, "questions width"],
    *,
    images: Float[Tensor, "tasks dim"],
    texts: Float[Tensor, "tasks width"],
    temperature: float = 0.1,
    has_image: Tensor | None = None,
    as_one: bool = False,
) -> Float[Tensor, "questions tasks"]:
    """Softmax over tasks of the mean cosine of a question's image and text with the tasks' means.

    Args:
        has_image: bool [questions]; where false the text alone decides.
        as_one: as the published code does with a batch: its largest cosines decide for all questions.
    """
    by_image, by_text = (
        F.normalize(own, dim=1) @ F.normalize(means, dim=1).T for own, means in ((image, images), (text, texts))
    )
    if as_one:
        by_image, by_text = (cosines.amax(0, keepdim=True).expand_as(cosines) for cosines in (by_image, by_text))
    both = (by_image + by_text) / 2
    cosines = both if has_image is None else torch.where(has_image[:, None], both, by_text)
    return (cosines / temperature).softmax(dim=1)


def moved_mean(
    mean: Float[Tensor, " dim"], count: float, features: Float[Tensor, "rows dim"]
) -> tuple[Float[Tensor, " dim"], float]:
    """A mean over `count` rows, with more rows in it: ``(count mean + sum) / (count + rows)``."""
    total = count + len(features)
    return (count * mean + features.sum(0)) / total, total
