"""Settings that all methods which tune a language model by low-rank updates share: the recipe of LLaVA-1.5 and SEFE.

Knows numbers only; imports no torch, so that recipes can be checked quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How one task is learned. Defaults: SEFE's recipe for LLaVA-1.5-7B, the same for all tasks."""

    rank: Annotated[int, Field(gt=0)] = 128
    """Rank of the updates, on every linear layer of the language model but its head."""
    alpha: Annotated[float, Field(gt=0)] = 256
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Of the update's input."""
    lr: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate of the updates (AdamW)."""
    projector_lr: Annotated[float, Field(ge=0)] | None = 2e-5
    """Peak learning rate of the projector; none: `lr`; 0: the projector is frozen."""
    batch_size: Annotated[int, Field(gt=0)] = 128
    """Conversations a step, over all processes."""
    accumulate: Annotated[int, Field(gt=0)] = 1
    """Gradient-accumulation steps of a batch."""
    epochs: Annotated[int, Field(gt=0)] = 1
    """Passes over a task."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps in which the learning rate rises; then it falls by a cosine to 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Max global norm for gradient clipping. None is what the published distributed runs do, whose configuration of
    DeepSpeed leaves it out."""
    mean: Literal["token", "conversation"] = "token"
    """The loss is a mean over all answer tokens of a part of the batch (published), or over the conversations'
    means, which does not depend on how a batch is cut or shared over processes."""
    max_length: Annotated[int, Field(gt=0)] = 2048
    """Tokens of a conversation, the image's included."""
    group_by_length: bool = True
    """Batches of one modality and of like lengths."""
    past: Literal["auto", "merged", "stacked"] = "auto"
    """Updates of earlier tasks: added to the weights, or kept as factors beside them, so that nothing is lost to the
    weights' type. auto: merged into float32 weights, stacked beside half-precision and quantized ones."""
    gradient_checkpointing: bool = True
    """Recompute the layers' activations in the backward pass: less memory, a third more time."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 1024
    """Most tokens of an answer."""
    generate_batch: Annotated[int, Field(gt=0)] = 16
    """Answers that are generated together."""
