"""Losses of gate policies: a reward for the keep ratio, and prototypes of policy logits (Dynamos).

Knows logits, actions and policy logits of a batch. Does not know networks, buffers or steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


class Terms(NamedTuple):
    """The losses of a batch that went through the gates, unweighted."""

    cross_entropy: Float[Tensor, ""]
    policy: Float[Tensor, ""]
    prototype: Float[Tensor, ""]


def terms(
    logits: Float[Tensor, "images classes"],
    actions: Float[Tensor, "images channels"],
    policy: Float[Tensor, "images channels"],
    log_probs: Float[Tensor, "images gates"],
    labels: Int[Tensor, " images"],
    *,
    boundaries: Sequence[int],
    keep_ratio: float,
    penalty: float,
) -> Terms:
    """Cross-entropy, policy loss, and prototype loss over the images that are predicted right."""
    correct = is_correct(logits, labels)
    rewards = keep_rewards(actions, correct, boundaries=boundaries, keep_ratio=keep_ratio, penalty=penalty)
    return Terms(
        F.cross_entropy(logits, labels),
        policy_loss(log_probs, rewards),
        prototype_loss(policy, labels, correct),
    )


def is_correct(logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> Bool[Tensor, " images"]:
    """Whether the largest logit is the label's."""
    return logits.argmax(dim=1) == labels


def keep_rewards(
    actions: Float[Tensor, "images channels"],
    correct: Bool[Tensor, " images"],
    *,
    boundaries: Sequence[int],
    keep_ratio: float,
    penalty: float,
) -> Float[Tensor, "images gates"]:
    """``-(keep_ratio - kept share)^2`` of each gate, times ``-penalty`` where the prediction is wrong.

    Args:
        boundaries: gate j owns the columns from boundaries[j] to boundaries[j + 1].
        keep_ratio: wanted share of kept channels.
        penalty: negative; -500 makes a wrong image's reward 500 times as low.
    """
    kept = torch.stack([actions[:, i:j].mean(dim=1) for i, j in pairwise(boundaries)], dim=1)
    rewards = -((keep_ratio - kept) ** 2)
    return torch.where(correct[:, None], rewards, rewards * -penalty)


def policy_loss(log_probs: Float[Tensor, "images gates"], rewards: Float[Tensor, "images gates"]) -> Float[Tensor, ""]:
    """REINFORCE without baseline: mean of ``-log_prob * reward``; the reward is a constant."""
    return -(log_probs * rewards.detach()).mean()


def prototype_loss(
    policy: Float[Tensor, "images channels"],
    labels: Int[Tensor, " images"],
    among: Bool[Tensor, " images"] | None = None,
) -> Float[Tensor, ""]:
    """``(1 + same) / (1 + different)`` with sums of squared distances, per channel, over pairs of images.

    Small when policy logits are alike within a class and unlike between classes. 0 with two images or fewer.
    From class sums, in O(images): pairs of one class sum to ``n_c sum |v|^2 - |sum v|^2``.

    Args:
        among: which images count; all by default.
    """
    counted = torch.ones_like(labels, dtype=torch.bool) if among is None else among
    weight = counted.to(policy.dtype)
    # Pair distances do not change when all move together; near the mean, squares lose fewer digits.
    total = weight.sum()
    mean = (weight @ policy) / total.clamp(min=1)
    v = (policy - mean.detach()) * weight[:, None]
    squares = (v * v).sum(dim=1)
    member = (labels[:, None] == labels[None, :]).to(policy.dtype) * weight[None, :]
    # Row i of `member @ v` is the sum over i's class: summed over i of <v_i, .> it is sum_c |sum v|^2.
    same = (squares * member.sum(dim=1)).sum() - (v * (member @ v)).sum()
    every = total * squares.sum() - (v.sum(dim=0) ** 2).sum()
    same, different = same / policy.shape[1], (every - same) / policy.shape[1]
    loss = (1 + same) / (1 + different)
    return torch.where(total > 2, loss, torch.zeros_like(loss))
