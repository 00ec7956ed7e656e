"""What an episode minimises, made from the rewards or teacher logits of the selected views.

Knows reward tables, sampling and losses. Does not know models. An `Objective` (see `losses`) serves several images
at once; draws depend on an image's own seed and step, never on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from perdure.draws import uniforms
from perdure.errors import DataError
from perdure.families.clip import clipscore
from perdure.families.test_time import losses

Sampling = Literal["top", "distribution"]


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """Settings of the policy gradient."""

    samples: int
    baseline: clipscore.Baseline = "image"
    amplify: bool = False
    min_entropy: float = 0.0
    """Weight of the entropy of the mean prediction, added to the loss."""
    sampling: Sampling = "top"


def require_candidates(candidates: Sequence[str]) -> None:
    """DataError if there is nothing to choose from."""
    if not candidates:
        raise DataError("there are no candidates", expected="the names of the classes")


def require_samples(samples: int, classes: int, sampling: Sampling) -> None:
    """DataError if there are fewer classes than samples."""
    if sampling == "top" and samples > classes:
        raise DataError(
            f"{samples} samples are to be taken among {classes} candidate(s)",
            expected="at least as many candidates as samples",
            todo=f"Set method.samples={classes}." if classes > 1 else "A single candidate leaves nothing to adapt to.",
        )


def reinforce(
    table: Float[Tensor, "images views classes"], settings: Reinforce, *, seeds: Sequence[int] = ()
) -> losses.Objective:
    """Policy gradient on the scores of the selected views.

    Args:
        seeds: one an image, for sampling from the distribution.
    """
    zero_sum = clipscore.sums_to_zero(settings.baseline, settings.samples) and not settings.min_entropy
    step = 0

    def objective(logits: Tensor) -> Tensor:
        nonlocal step
        detached = logits.detach()
        if settings.sampling == "top":
            index = losses.top_answers(detached, settings.samples)
        else:
            drawn = uniforms(seeds, detached.shape[1], settings.samples, of=("samples", step))
            index = losses.drawn_answers(detached, drawn)
        step += 1
        scores = clipscore.pick(table, index)
        reward = clipscore.rewards(scores, baseline=settings.baseline, amplify=settings.amplify).to(logits.dtype)
        loss = losses.policy_gradient(logits, index, reward, zero_sum=zero_sum)
        return loss + settings.min_entropy * losses.average_entropy(logits) if settings.min_entropy else loss

    return objective


def imitate(name: losses.Distillation, teacher: Float[Tensor, "images views classes"]) -> losses.Objective:
    """Distillation from a teacher's logits of the selected views."""
    return lambda logits: losses.distill(name, logits, teacher.to(logits.dtype))
