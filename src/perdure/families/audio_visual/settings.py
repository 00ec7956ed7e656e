"""Settings that audio-visual methods share: how a task is learned, and what both towers read.

Knows numbers only; imports no torch, so that recipes can be checked quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a task's videos are learned."""

    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over each task's videos."""
    lr: Annotated[float, Field(gt=0)] = 0.0003
    """Learning rate of Adam; falls to `lr_min` as a cosine, epoch by epoch."""
    lr_min: Annotated[float, Field(ge=0)] = 1e-06
    """Learning rate at the end of the cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-05
    """Of Adam, coupled."""
    clip_norm: Annotated[float, Field(gt=0)] = 0.5
    """Max global norm for gradient clipping."""
    batch_size: Annotated[int, Field(ge=1)] = 2
    """Videos a step."""
    mask_dim: Annotated[int, Field(ge=1)] = 512
    """Channels of the map that masks are read from."""
    mask_heads: Annotated[int, Field(ge=1)] = 8
    """Attention heads between the frame and its sound in the head of masks."""
    pixel_statistics: Literal["imagenet", "clip"] = "imagenet"
    """Mean and deviation that pixels are normalized with: ImageNet's, as in PHP, or those of the CLIP at hand."""
    cache_gigabytes: Annotated[float, Field(ge=0)] = 0.0
    """Disk space for embedded frames and spectrograms of videos, float16, made once; 0: made anew in each epoch."""
    cache_folder: Path | None = None
    """Where they are; none: in the run's folder. Runs may share one."""
