"""DualPrompt for frames and sound: general prompts for all tasks in early blocks, an expert prompt a task further up.

Wang et al., DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning, ECCV 2022. The task's name,
known at test, picks the expert prompt. Prompts are prefixes of the visual tower's attention.

Needs: 16 GB GPU memory for ViT-B/32 with HTSAT and two videos a batch.

Knows which prompts stand where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from perdure.families.audio_visual import front_ends, learning, settings
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
    """Settings of DualPrompt."""

    general_blocks: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1)
    """Blocks with the prompt of all tasks, counted from 0."""
    expert_blocks: tuple[Annotated[int, Field(ge=0)], ...] = (2, 3, 4)
    """Blocks with the prompt of each task."""
    general_length: Annotated[int, Field(ge=1)] = 5
    """Tokens of the general prompt."""
    expert_length: Annotated[int, Field(ge=1)] = 20
    """Tokens of an expert prompt."""

    def faults(self):
        for block in set(self.general_blocks) & set(self.expert_blocks):
            yield "expert_blocks", f"block {block} is also one of general_blocks"


class Prefixes(nn.Module):
    """Keys and values put before the attention of some blocks: ``[blocks 2 length dim]``."""

    def __init__(self, blocks: int, length: int, dim: int) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.empty(blocks, 2, length, dim).uniform_(-1, 1))


class AvDualprompt:
    """State: the general prompt, and each task's expert prompt and head."""

    Config = Config
    answers = frozenset({"localize-events", "parse-video", "segment", "answer", "classify"})
    new_labels_only = "each task has a head of its own"
    needs_task_name = frozenset({"segment", "answer"})

    def __init__(self, config: Config, *, clip: Clip, audio: Clap) -> None:
        self.config, self.clip, self.audio = config, clip, audio
        self.system = system_of(config, clip, audio)
        self.tasks = TaskParts(self.make_parts, per_task={"head", "expert"})

    def preprocess(self, example: Example, training: bool) -> Batch:
        return front_ends.preprocess(self.system, example, training)

    def collate(self, items: list[Batch]) -> Batch:
        return front_ends.collate(items)

    def make_parts(self, problem: Problem) -> nn.ModuleDict:
        """Fresh prompts and what stands on top."""
        config, dim = self.config, self.clip.vision_config.hidden_size
        general = Prefixes(len(config.general_blocks), config.general_length, dim)
        expert = Prefixes(len(config.expert_blocks), config.expert_length, dim)
        return nn.ModuleDict({**self.system.new_parts(problem), "general": general, "expert": expert})

    def insert(self, parts: Mapping[str, Any], frames: Tensor, patches: Tensor, segments: int) -> Insertions:
        """Both prompts, the same for every frame."""
        config, n = self.config, len(frames)
        prompts = {}
        for name, blocks in (("general", config.general_blocks), ("expert", config.expert_blocks)):
            for block, (keys, values) in zip(blocks, parts[name].prompt):
                prompts[block] = (keys.expand(n, -1, -1), values.expand(n, -1, -1))
        return Insertions(prefix=prompts)

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
