"""Learning a mapper before a frozen language model: rows of captions, the loss, the published schedule.

Knows a captioner, features and captions. Does not know methods, files or images. ClipCap, CapDec.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from perdure import training
from perdure.errors import DataError
from perdure.loading import TensorBatches
from perdure.runtime import Runtime

if TYPE_CHECKING:
    from perdure.models.captioner import Captioner

IGNORED = -100
Change = Callable[[Float[Tensor, "captions dim"]], Float[Tensor, "captions dim"]]


class Learning(Protocol):
    """What a method's settings say about fitting a mapper."""

    @property
    def lr(self) -> float: ...
    @property
    def epochs(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learn_end(self) -> bool: ...


def learn_mapper(
    captioner: Captioner,
    features: Float[Tensor, "rows dim"],
    captions: Sequence[str],
    owner: Int[Tensor, " captions"],
    settings: Learning,
    *,
    runtime: Runtime,
    change: Change = lambda features: features,
) -> None:
    """Fit the mapper to captions, each after the feature of its row.

    Args:
        features: unit features; `owner` names each caption's row.
        change: what is done to a batch of features (noise), in each step anew.
    """
    words, cut = captioner.words, captioner.words.cut_captions
    rows = words.ids(captions, most=captioner.room, ended=settings.learn_end)
    if not rows:
        raise DataError("there are no captions to learn from")
    ids, mask = words.padded(rows, length=words.usual_length(rows))
    runtime.log("captions", count=len(rows), longest=ids.shape[1], cut=words.cut_captions - cut)
    if words.cut_captions > cut:
        runtime.say(f"{words.cut_captions - cut} captions are longer than the context and were cut")
    batches = TensorBatches(
        {"ids": ids, "mask": mask, "owner": owner},
        batch_size=settings.batch_size,
        runtime=runtime,
        stage="mapper",
        drop_last=len(rows) >= settings.batch_size,
    )
    features = features.to(runtime.device)

    def loss(batch):
        return caption_loss(captioner, change(features[batch["owner"]]), batch["ids"], batch["mask"])

    fit = schedule(lr=settings.lr, epochs=settings.epochs, warmup=settings.warmup)
    mapper = dict(captioner.mapper.named_parameters())
    training.fit(loss, mapper, batches, fit, runtime=runtime, stage="mapper")


def flat(listed: Sequence[Sequence[str]]) -> tuple[list[str], Int[Tensor, " captions"]]:
    """All captions one after another, and the image of each."""
    owner = [i for i, captions in enumerate(listed) for _ in captions]
    return [text for captions in listed for text in captions], torch.tensor(owner, dtype=torch.long)


def caption_loss(
    captioner: Captioner,
    features: Float[Tensor, "captions dim"],
    ids: Int[Tensor, "captions words"],
    mask: Int[Tensor, "captions words"],
) -> Float[Tensor, ""]:
    """Mean cross-entropy over all real words of the batch, the start token among them."""
    logits = captioner.logits(captioner.mapper(features), ids, mask)
    return F.cross_entropy(logits.transpose(1, 2), ids.masked_fill(mask == 0, IGNORED), ignore_index=IGNORED)


def schedule(*, lr: float, epochs: int, warmup: int) -> training.Fit:
    """AdamW without decay; the rate rises over `warmup` steps and falls to 0.

    The published code moves the schedule before each step, so that the first one uses ``lr / warmup``.
    """
    return training.Fit(
        lr=lr,
        epochs=epochs,
        optimizer="adamw",
        eps=1e-6,
        schedule="linear_warmup",
        warmup_steps=warmup,
        schedule_offset=1,
    )
