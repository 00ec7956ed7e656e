"""Losses without labels over the views of a test image, and which views and answers they look at.

Knows logits ``[..., views, classes]``; leading axes are images that are adapted to side by side, each with a loss of
its own. Does not know models. Sources: RLCF (Zhao et al., ICLR 2024), TPT (Shu et al., NeurIPS 2022), KD (Hinton et
al. 2015), DKD (Zhao et al., CVPR 2022), ATKD (Guo et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from perdure.errors import RecipeError

Objective = Callable[[Float[Tensor, "*images views classes"]], Float[Tensor, "*images"]]
"""What an episode minimises: logits of the selected views -> one loss an image."""
Distillation = Literal["kd", "kd_plain", "dkd", "atkd", "atkd_std", "atkd2"]


# -- which views, which answers -----------------------------------------------------------------------------


def count_selected(views: int, share: float) -> int:
    """How many views are kept: the floor of their share.

    Raises:
        RecipeError: the share selects no view.
    """
    kept = math.floor(views * share + 1e-9)
    if kept < 1:
        raise RecipeError(
            f"{share:g} of {views} views is less than one view",
            where="method.selection",
            expected="at least one view",
            todo=f"Set selection to {1 / views:.2g} or more, or take more views.",
        )
    return kept


def select_views(logits: Float[Tensor, "*images views classes"], share: float) -> Int[Tensor, "*images kept"]:
    """The most confident views: those of least entropy, the surest first."""
    kept = count_selected(logits.shape[-2], share)
    return entropy(logits).argsort(dim=-1, stable=True)[..., :kept]


def entropy(logits: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    """Entropy of the softmax, in nats."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def take_views(values: Float[Tensor, "*images views ..."], index: Int[Tensor, "*images kept"]) -> Tensor:
    """``values[..., index, ...]`` along the axis of views."""
    trailing = values.ndim - index.ndim
    shaped = index.reshape(*index.shape, *[1] * trailing)
    return values.gather(index.ndim - 1, shaped.expand(*index.shape, *values.shape[index.ndim :]))


def top_answers(logits: Float[Tensor, "*batch classes"], samples: int) -> Int[Tensor, "*batch samples"]:
    """The `samples` most probable answers, as the published code draws them."""
    return logits.topk(samples, dim=-1).indices


def drawn_answers(
    logits: Float[Tensor, "*batch classes"], uniforms: Float[Tensor, "*batch samples"]
) -> Int[Tensor, "*batch samples"]:
    """Answers drawn from the softmax, with replacement, as the paper's text has it. `uniforms` lie in [0, 1)."""
    cumulative = logits.softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, uniforms.to(logits) * cumulative[..., -1:]).clamp_max(logits.shape[-1] - 1)


# -- losses -------------------------------------------------------------------------------------------------


def policy_gradient(
    logits: Float[Tensor, "*images views classes"],
    index: Int[Tensor, "*images views samples"],
    rewards: Float[Tensor, "*images views samples"],
    *,
    zero_sum: bool = False,
) -> Float[Tensor, "*images"]:
    """REINFORCE: the mean over views and samples of ``reward * CE(logits, sample)``.

    Args:
        zero_sum: the rewards of every view sum to zero. Then the log-sum-exp cancels, the loss is ``-mean(r z)``, and
            its gradient is exactly zero at every class that was not sampled.
    """
    chosen = logits.gather(-1, index)
    if not zero_sum:
        chosen = chosen - logits.logsumexp(-1, keepdim=True)
    return -(rewards * chosen).mean((-2, -1))


def average_entropy(logits: Float[Tensor, "*images views classes"]) -> Float[Tensor, "*images"]:
    """Entropy of the mean of the views' distributions (TPT)."""
    log_p = logits.log_softmax(-1)
    mean = log_p.logsumexp(-2) - math.log(logits.shape[-2])
    mean = mean.clamp_min(torch.finfo(mean.dtype).min)
    return -(mean * mean.exp()).sum(-1)


def distill(
    name: Distillation, logits: Float[Tensor, "*images views classes"], teacher: Float[Tensor, "*images views classes"]
) -> Float[Tensor, "*images"]:
    """The loss of that name at its published settings."""
    match name:
        case "kd":
            return knowledge_distillation(logits, teacher)
        case "kd_plain":
            return knowledge_distillation(logits, teacher, teacher_entropy=True)
        case "dkd":
            return decoupled_distillation(logits, teacher)
        case "atkd":
            return standardized_distillation(logits, teacher, by="mean")
        case "atkd_std":
            return standardized_distillation(logits, teacher, by="std")
        case "atkd2":
            return layer_norm_distillation(logits, teacher)


def knowledge_distillation(
    logits: Float[Tensor, "*images views classes"],
    teacher: Float[Tensor, "*images views classes"],
    *,
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    teacher_entropy: bool = False,
) -> Float[Tensor, "*images"]:
    """``-T^2 mean_i sum_c softmax(t / T_t) log softmax(z / T)``.

    Args:
        teacher_entropy: subtract the teacher's entropy (the Kullback-Leibler divergence); no gradient changes.
    """
    log_q = (teacher / teacher_temperature).log_softmax(-1)
    log_p = (logits / temperature).log_softmax(-1)
    difference = log_q - log_p if teacher_entropy else -log_p
    return temperature**2 * (log_q.exp() * difference).sum(-1).mean(-1)


def decoupled_distillation(
    logits: Float[Tensor, "*images views classes"],
    teacher: Float[Tensor, "*images views classes"],
    *,
    alpha: float = 1.0,
    beta: float = 0.5,
) -> Float[Tensor, "*images"]:
    """``alpha KL(target or not) + beta KL(among the others)``; the target is the teacher's answer."""
    is_target = F.one_hot(teacher.argmax(-1), teacher.shape[-1]).bool()
    target = _binary_divergence(logits, teacher, is_target)
    others = _divergence(logits - 1000.0 * is_target, teacher - 1000.0 * is_target)
    return (alpha * target + beta * others).mean(-1)


def standardized_distillation(
    logits: Float[Tensor, "*images views classes"],
    teacher: Float[Tensor, "*images views classes"],
    *,
    by: Literal["mean", "std"] = "std",
) -> Float[Tensor, "*images"]:
    """KL between logits that are doubled and divided by their own (detached) spread, weighed by its square.

    Args:
        by: `std` divides by the biased standard deviation, as the method is described. `mean` divides by the mean, as
            the published RLCF code does (it swaps the two); its loss is huge where a mean is near zero.
    """
    student, spread = _standardized(logits, by)
    fixed, _ = _standardized(teacher, by)
    return (_divergence(student, fixed) * spread.squeeze(-1) ** 2).mean(-1)


def layer_norm_distillation(
    logits: Float[Tensor, "*images views classes"],
    teacher: Float[Tensor, "*images views classes"],
    *,
    temperature: float = 4.0,
) -> Float[Tensor, "*images"]:
    """KL between layer-normalised logits, times two, at temperature 4."""
    student, fixed = (2 * F.layer_norm(z, z.shape[-1:]) / temperature for z in (logits, teacher))
    return temperature**2 * _divergence(student, fixed).mean(-1)


def _divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(logits)) along the last axis."""
    log_q = teacher.log_softmax(-1)
    return (log_q.exp() * (log_q - logits.log_softmax(-1))).sum(-1)


def _binary_divergence(logits: Tensor, teacher: Tensor, is_target: Tensor) -> Tensor:
    """KL between (p of the target, p of all others)."""

    def binary(z: Tensor) -> Tensor:
        log_p = z.log_softmax(-1)
        inside = log_p.masked_fill(~is_target, -torch.inf).logsumexp(-1)
        outside = log_p.masked_fill(is_target, -torch.inf).logsumexp(-1)
        return torch.stack([inside, outside], dim=-1)

    if logits.shape[-1] == 1:
        return logits.sum(-1) * 0
    log_q, log_p = binary(teacher), binary(logits)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def _standardized(logits: Tensor, by: str) -> tuple[Tensor, Tensor]:
    spread, mean = torch.std_mean(logits.detach(), -1, correction=0, keepdim=True)
    center, divisor = (mean, spread) if by == "std" else (spread, mean)
    return 2 * (logits - center) / (divisor + 1e-5), divisor
