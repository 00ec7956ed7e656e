"""CODA-Prompt for frames and sound: a prompt is a sum of components, weighted by attended queries and keys.

Smith et al., CODA-Prompt: COntinual Decomposed Attention-based Prompting, CVPR 2023. Each task adds components; those
of earlier tasks are frozen; keys, attentions and components are held orthogonal. Prompts are prefixes of the visual
tower's attention.

Needs: 16 GB GPU memory for ViT-B/32 with HTSAT and two videos a batch.

Knows components and their weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from perdure.errors import RecipeError
from perdure.families.audio_visual import front_ends, learning, settings
from perdure.families.audio_visual.inputs import Problem
from perdure.families.audio_visual.parts import TaskParts
from perdure.families.audio_visual.pool import summarize
from perdure.families.audio_visual.system import system_of
from perdure.families.audio_visual.towers import Insertions
from perdure.layers.prompts import not_orthogonal, unit
from perdure.models.clap import Clap
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Predictions, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Training):
    """Settings of CODA-Prompt."""

    blocks: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2, 3, 4)
    """Blocks with a prompt, counted from 0."""
    components: Annotated[int, Field(ge=1)] = 10
    """New components a task."""
    tasks: Annotated[int, Field(ge=1)] = 8
    """Most tasks that there is room for."""
    length: Annotated[int, Field(ge=1)] = 8
    """Tokens of a prompt."""
    orthogonal: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the penalty for components, keys and attentions that are not orthogonal."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of Adam, coupled; above 0 it would wear frozen components down."""


class Components(nn.Module):
    """Room for all tasks: prompts ``[blocks all 2 length dim]``, keys and attentions ``[all dim]``."""

    def __init__(self, blocks: int, rows: int, length: int, dim: int) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.randn(blocks, rows, 2, length, dim) * 0.02)
        self.key = nn.Parameter(torch.randn(rows, dim))
        self.attention = nn.Parameter(torch.randn(rows, dim))


class AvCodaPrompt:
    """State: the components of all tasks so far, and each task's head."""

    Config = Config
    answers = frozenset({"localize-events", "parse-video", "segment", "answer", "classify"})
    new_labels_only = "each task has a head of its own"
    needs_task_name = frozenset({"segment", "answer"})

    def __init__(self, config: Config, *, clip: Clip, audio: Clap) -> None:
        self.config, self.clip, self.audio = config, clip, audio
        self.system = system_of(config, clip, audio)
        self.tasks = TaskParts(self.make_parts, per_task={"head"})
        self.learned = 0

    def preprocess(self, example: Example, training: bool) -> Batch:
        return front_ends.preprocess(self.system, example, training)

    def collate(self, items: list[Batch]) -> Batch:
        return front_ends.collate(items)

    def make_parts(self, problem: Problem) -> nn.ModuleDict:
        """Fresh components and what stands on top."""
        config, dim = self.config, self.clip.vision_config.hidden_size
        rows = config.components * config.tasks
        made = Components(len(config.blocks), rows, config.length, dim)
        return nn.ModuleDict({**self.system.new_parts(problem), "components": made})

    def insert(self, parts: Mapping[str, Any], frames: Tensor, patches: Tensor, segments: int) -> Insertions:
        """Weighted sums of the components so far; gradients reach only those of the task being learned."""
        prompt, key, attention = self._used(parts["components"])
        queries = summarize(frames, "mean")[:, None] * attention
        weight = (unit(queries) * unit(key)).sum(2)
        made = torch.einsum("fm,bmtld->bftld", weight, prompt)
        prefixes = {block: (p[:, 0], p[:, 1]) for block, p in zip(self.config.blocks, made)}
        penalty = self._penalty(prompt, key, attention) if parts["components"].training else None
        return Insertions(prefix=prefixes, penalty=penalty)

    def _used(self, parts: Components) -> tuple[Tensor, Tensor, Tensor]:
        """Prompt, key and attention of the components so far, past ones detached."""
        training = parts.training
        past = self.learned * self.config.components
        end = past + self.config.components if training else max(past, self.config.components)

        def rows(tensor: Tensor, axis: int) -> Tensor:
            old, new = tensor.narrow(axis, 0, min(past, end)), tensor.narrow(axis, min(past, end), end - min(past, end))
            return torch.cat([old.detach(), new], dim=axis)

        return rows(parts.prompt, 1), rows(parts.key, 0), rows(parts.attention, 0)

    def _penalty(self, prompt: Tensor, key: Tensor, attention: Tensor) -> Tensor:
        """How far components, keys and attentions are from being orthogonal."""
        tables = [key, attention, *prompt.flatten(2)]
        return self.config.orthogonal * torch.stack([not_orthogonal(table) for table in tables]).sum()

    def learn(self, task: Task, runtime: Runtime) -> None:
        if self.learned >= self.config.tasks:
            raise RecipeError(
                f"this is task {self.learned + 1}", where="method.tasks", expected=f"at most {self.config.tasks} tasks"
            )
        learning.learn_task(self.system, self.tasks, self.insert, task, self.config, runtime=runtime)
        self.learned += 1

    def predictor(self, query: Query) -> Callable[[Batch], Predictions]:
        return learning.predictor(self.system, self.tasks, self.insert, query)

    def state_dict(self) -> dict[str, Any]:
        return {"tasks": self.tasks.state(), "learned": self.learned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tasks.load(state["tasks"])
        self.learned = state["learned"]

    def facts(self) -> dict[str, Any]:
        """Parameters that are trained in a task, for the result card."""
        return {"extra_parameters": learning.count(self.tasks.current)}
