"""Losses that two or more methods use.

Knows logits and labels. Does not know models, tasks or what a class is called.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def local_cross_entropy(
    logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"], *, own: Sequence[int] | None
) -> Float[Tensor, ""]:
    """Cross-entropy over the columns of the labels `own`, sorted; over all with None.

    Restricted to the current task's classes, it leaves the logits of earlier classes out of the
    softmax, so that these get exactly no gradient. All labels must be among `own`.
    """
    if own is None:
        return F.cross_entropy(logits, labels)
    columns = torch.tensor(own, device=labels.device)
    return F.cross_entropy(logits[:, columns], torch.searchsorted(columns, labels))


def distillation(
    logits: Float[Tensor, "images classes"],
    teacher: Float[Tensor, "images classes"],
    *,
    temperature: float = 2.0,
) -> Float[Tensor, ""]:
    """``T^2 KL(softmax(teacher / T) || softmax(logits / T))``, mean over images (Hinton et al. 2015)."""
    student = F.log_softmax(logits / temperature, dim=1)
    target = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(student, target, log_target=True, reduction="batchmean")
