"""Learning a mapper before a frozen language model: the loss of a batch, and the published schedule.

Knows a captioner, features and ids. Does not know methods, files or batches. ClipCap, CapDec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from perdure.training import Fit

if TYPE_CHECKING:
    from perdure.models.captioner import Captioner

IGNORED = -100


def caption_loss(
    captioner: Captioner,
    features: Float[Tensor, "captions dim"],
    ids: Int[Tensor, "captions words"],
    mask: Int[Tensor, "captions words"],
) -> Float[Tensor, ""]:
    """Mean cross-entropy over all real words of the batch, the start token among them."""
    logits = captioner.logits(captioner.mapper(features), ids, mask)
    return F.cross_entropy(logits.transpose(1, 2), ids.masked_fill(mask == 0, IGNORED), ignore_index=IGNORED)


def schedule(*, lr: float, epochs: int, warmup: int) -> Fit:
    """AdamW without decay; the rate rises over `warmup` steps and falls to 0.

    The published code moves the schedule before each step, so that the first one uses ``lr / warmup``.
    """
    return Fit(
        lr=lr,
        epochs=epochs,
        optimizer="adamw",
        eps=1e-6,
        schedule="linear_warmup",
        warmup_steps=warmup,
        schedule_offset=1,
    )
