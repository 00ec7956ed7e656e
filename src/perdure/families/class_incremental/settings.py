"""Settings that methods on a vision transformer share: how prompts, a head or a whole network are trained.

Knows numbers only; imports no torch, so that recipes can be checked quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from perdure.families.clip import settings


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """How prompts and the head learn a task."""

    epochs: Annotated[int, Field(ge=1)] = 5
    """Passes over a task's images."""
    lr: Annotated[float, Field(gt=0)] = 0.001
    """Learning rate of Adam, whose moments begin anew at each task."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Images a step."""
    augment: Literal["crop_flip", "none"] = "crop_flip"
    """Random crops, mirrored half of the time; `none`: queries are computed once a task."""
    smallest_crop: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Least share of an image's area in a crop."""

    def misfits(self, models):
        settings = models["vit"][1] if "vit" in models else None
        depth = getattr(settings, "count_blocks", lambda: None)()
        for name in ("blocks", "general_blocks", "expert_blocks"):
            if depth is not None and (wrong := [block for block in getattr(self, name, ()) if block >= depth]):
                yield name, f"names block {wrong[0]}; the network has blocks 0 to {depth - 1}"


@dataclass(frozen=True, kw_only=True)
class Pool(Prompting):
    """A pool of prompts with keys, of which each image takes the nearest."""

    pool: Annotated[int, Field(ge=1)] = 10
    """Prompts in the pool."""
    top_k: Annotated[int, Field(ge=1)] = 5
    """Prompts an image takes."""
    batchwise: bool = True
    """While training, all images of a batch take the prompts that most of them are nearest to."""
    batchwise_eval: bool = False
    """The same in tests, as published: answers then depend on the other images of a batch."""
    task_slots: bool = False
    """While training, task t takes prompts ``t k .. (t+1) k - 1``, as long as there are any."""
    copy_prompts: bool = False
    """With `task_slots`: a task's prompts begin as those of the task before."""
    copy_keys: bool = False
    """The same for keys."""
    official_key_copy: bool = False
    """Where the pool is used up, the last keys are overwritten at each task's start, as in published code."""
    pull: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the cosines between queries and the keys of their prompts."""
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Max gradient norm over prompts, keys and head; none: no clipping."""

    def faults(self):
        if self.top_k > self.pool:
            yield "top_k", f"takes {self.top_k} of a pool of {self.pool}"
        if (self.copy_prompts or self.copy_keys) and not self.task_slots:
            yield "task_slots", "copying prompts or keys needs slots of a task's own; set task_slots: true"


@dataclass(frozen=True, kw_only=True)
class Tuning(settings.Training):
    """How a CLIP under its classes' texts, or a backbone (role `vit`) under a head that grows, learns a task."""

    trains: Literal["lora", "all", "head"] = "lora"
    """Train adapters (`vit`: of each block's attention), or all weights but CLIP's logit scale (then 1e-5 is a usual
    `lr`), or of a `vit` the head alone, on features that are computed once. A head always learns."""
    head: Literal["linear", "cosine"] = "linear"
    """Role `vit`: a row and a bias a class, or cosines with a row a class times a scale."""
    head_lr: Annotated[float, Field(gt=0)] = 0.001
    """Role `vit`: learning rate of the head, which falls as `lr` does."""

    def misfits(self, models):
        if self.trains == "head" and "clip" in models:
            yield "trains", "is head, and a CLIP has none; set lora or all, or give `models.vit`"
