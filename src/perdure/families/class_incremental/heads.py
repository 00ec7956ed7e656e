"""Heads that grow: logits of features of an image backbone, over the classes that have come.

Knows rows of classes and how they begin, each by its label alone. Does not know tasks, backbones or losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.runtime import Runtime

Start = Callable[[int, Runtime], tuple[Float[Tensor, " dim"], float]]
"""First row and bias of a label in a head."""
SCALE = 10.0
"""First factor of cosines."""


class Head(nn.Module):
    """Logits of all classes seen: a row and a bias a class, which a class gets when it first comes.

    With `cosine`: ``scale * cosine(feature, row)``, so that no row is heard louder than another; no biases, and the
    scale is trained, too.
    """

    def __init__(self, dim: int, start: Start, *, cosine: bool = False) -> None:
        super().__init__()
        self.dim, self.start, self.cosine = dim, start, cosine
        self.empty()

    def empty(self) -> None:
        """No class, as at first."""
        self.weight = nn.Parameter(torch.zeros(0, self.dim))
        self.bias = None if self.cosine else nn.Parameter(torch.zeros(0))
        self.scale = nn.Parameter(torch.tensor([SCALE])) if self.cosine else None

    def grow(self, classes: int, runtime: Runtime, *, like: Tensor) -> None:
        """Rows up to `classes`, each drawn by its label, so that it does not depend on when it comes."""
        drawn = [self.start(label, runtime) for label in range(len(self.weight), classes)]
        rows = [row.to(like)[None] for row, _ in drawn]
        self.weight = nn.Parameter(torch.cat([self.weight.data.to(like), *rows]))
        if self.bias is not None:
            offsets = torch.tensor([offset for _, offset in drawn]).to(like)
            self.bias = nn.Parameter(torch.cat([self.bias.data.to(like), offsets]))
        if self.scale is not None:
            self.scale = nn.Parameter(self.scale.data.to(like))

    def forward(self, features: Float[Tensor, "images dim"]) -> Float[Tensor, "images classes"]:
        if self.scale is None:
            return F.linear(features, self.weight, self.bias)
        return self.scale * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))

    def load(self, state: Mapping[str, Any]) -> None:
        """A state of any number of classes."""
        for name, tensor in state.items():
            setattr(self, name, nn.Parameter(tensor.clone()))


def truncated_normal(dim: int) -> Start:
    """timm's start of a head: normal with deviation 0.02 cut at two, bias 0."""

    def start(label: int, runtime: Runtime) -> tuple[Tensor, float]:
        row = nn.init.trunc_normal_(torch.empty(dim), std=0.02, generator=runtime.generator("head", label))
        return row, 0.0

    return start


def uniform(dim: int) -> Start:
    """torch's start of a linear layer: uniform within one over the root of the width, bias too."""

    def start(label: int, runtime: Runtime) -> tuple[Tensor, float]:
        bound = dim**-0.5
        drawn = torch.empty(dim + 1).uniform_(-bound, bound, generator=runtime.generator("head", label))
        return drawn[:dim], float(drawn[dim])

    return start
