"""Settings that methods on a CLIP share: the prompts, the adapters, and how they are trained.

Knows numbers only; imports no torch, so that recipes can be checked quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from perdure.settings.config import Template


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Texts of the classes."""

    template: Template = "a good photo of a {}."
    """Prompt of a class; `{}` stands for its name."""
    clean_names: bool = False
    """Put spaces for the underscores of class names. Off in all published numbers."""


@dataclass(frozen=True, kw_only=True)
class Adapters(Prompts):
    """Low-rank adapters of the towers."""

    lora_mode: str = "vision+only_kv+text"
    """Towers and layers with adapters, joined by +: `vision`, `text`, and `only_kv`, `mlp` or neither."""
    lora_rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the adapters."""
    lora_alpha: Annotated[float, Field(gt=0)] = 1.0
    """The adapters' output is scaled by alpha / rank."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Parts in which a batch is computed: less memory, the same step."""


@dataclass(frozen=True, kw_only=True)
class Training(Adapters):
    """How adapters, or the whole model, learn a task."""

    trains: Literal["lora", "all"] = "lora"
    """Train adapters, or all weights but the logit scale (then 1e-5 is a usual `lr`)."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over a task's images."""
    lr: Annotated[float, Field(gt=0)] = 0.001
    """Learning rate of Adam; falls to a hundredth as a cosine, epoch by epoch."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images a step."""
