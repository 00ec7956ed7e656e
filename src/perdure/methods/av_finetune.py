"""Sequential fine-tuning of adapters between CLIP and CLAP: nothing is done against forgetting.

The adapters of DG-SCT (Duan et al., Cross-modal Prompts, NeurIPS 2023) in all blocks, or in some, shared by all tasks
and trained on one task after another. Each task has a head of its own.

Needs: 24 GB GPU memory for ViT-B/32 with HTSAT and two videos a batch.

Knows where adapters stand. The adapter itself is in `perdure.families.audio_visual`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from perdure.families.audio_visual import front_ends, learning, settings
from perdure.families.audio_visual.adapter import cross_adapters, cross_insertions
from perdure.families.audio_visual.inputs import Problem
from perdure.families.audio_visual.parts import TaskParts
from perdure.families.audio_visual.system import system_of
from perdure.families.audio_visual.towers import Insertions
from perdure.models.clap import Clap
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Predictions, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Training):
    """Settings of sequential fine-tuning."""

    blocks: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    """Blocks with adapters, counted from 0."""
    audio_residual: bool = True
    """What audio adapters give stays in the audio stream."""
    latents: Annotated[int, Field(ge=1)] = 32
    """Learned tokens of an adapter that carry the other modality over."""
    reduction: Annotated[int, Field(ge=1)] = 8
    """Width of the tokens over that of an adapter's bottleneck."""


class AvFinetune:
    """State: the adapters, and each task's head."""

    Config = Config
    answers = frozenset({"localize-events", "parse-video", "segment", "answer", "classify"})
    new_labels_only = "each task has a head of its own"
    needs_task_name = frozenset({"segment", "answer"})

    def __init__(self, config: Config, *, clip: Clip, audio: Clap) -> None:
        self.config, self.clip, self.audio = config, clip, audio
        self.system = system_of(config, clip, audio)
        self.tasks = TaskParts(self.make_parts, per_task={"head"})

    def preprocess(self, example: Example, training: bool) -> Batch:
        return front_ends.preprocess(self.system, example, training)

    def collate(self, items: list[Batch]) -> Batch:
        return front_ends.collate(items)

    def make_parts(self, problem: Problem) -> nn.ModuleDict:
        """Fresh adapters and what stands on top."""
        config = self.config
        cross = cross_adapters(self.clip, self.audio, config.blocks, latents=config.latents, reduction=config.reduction)
        return nn.ModuleDict({**self.system.new_parts(problem), "adapters": cross})

    def insert(self, parts: Mapping[str, Any], frames: Tensor, patches: Tensor, segments: int) -> Insertions:
        """The adapters of every block."""
        return cross_insertions(parts["adapters"], audio_residual=self.config.audio_residual)

    def learn(self, task: Task, runtime: Runtime) -> None:
        learning.learn_task(self.system, self.tasks, self.insert, task, self.config, runtime=runtime)

    def predictor(self, query: Query) -> Callable[[Batch], Predictions]:
        return learning.predictor(self.system, self.tasks, self.insert, query)

    def state_dict(self) -> dict[str, Any]:
        return {"tasks": self.tasks.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tasks.load(state["tasks"])

    def facts(self) -> dict[str, Any]:
        """Parameters that are trained in a task, for the result card."""
        return {"extra_parameters": learning.count(self.tasks.current)}
