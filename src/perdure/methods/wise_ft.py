"""WiSE-FT: fine-tune task after task, and after each one mix the weights with those of before.

Wortsman et al., Robust Fine-tuning of Zero-shot Models, CVPR 2022; task by task as in Zheng et al., ZSCL, ICCV 2023.

Needs: 8 GB GPU memory for ViT-B/16 and 128 images a step.

Knows what is mixed with what. The arithmetic is in `perdure.layers.merging`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from perdure.families.clip import classifier, whole
from perdure.layers import merging
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Task


@dataclass(frozen=True, kw_only=True)
class Config(whole.Settings):
    """Settings of WiSE-FT."""

    weight: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of the fine-tuned weights (alpha)."""
    base: Literal["zero_shot", "previous"] = "zero_shot"
    """Mixed with the pretrained weights, or with those at the task's start."""


class WiseFt(whole.Tuned):
    """State: the mixed weights and the class names."""

    Config = Config
    answers = frozenset({"classify"})
    not_merged = "it merges by itself"
    config: Config

    def __init__(self, config: Config, *, clip: Clip) -> None:
        super().__init__(config, clip)
        self.pretrained = whole.copied(self.parameters) if config.base == "zero_shot" else None

    def learn(self, task: Task, runtime: Runtime) -> None:
        classes = classifier.extend_classes(self.classes, task)
        base = whole.copied(self.parameters) if self.pretrained is None else self.pretrained
        whole.tune(self.clip, self.parameters, task, classes, self.config, runtime)
        mixed = merging.interpolate(base, whole.copied(self.parameters), self.config.weight)
        whole.put(self.parameters, mixed)
        self.classes = classes

    def state_dict(self) -> dict[str, Any]:
        return {"weights": whole.copied(self.parameters), "classes": list(self.classes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        whole.put(self.parameters, state["weights"])
        self.classes = list(state["classes"])
