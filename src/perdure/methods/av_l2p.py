"""L2P for frames and sound: each frame picks prompts from one pool that all tasks share.

Wang et al., Learning to Prompt for Continual Learning, CVPR 2022: keys are drawn towards the queries that pick them.
Here prompts are prefixes of the visual tower's attention; the audio tower stays as it is.

Needs: 16 GB GPU memory for ViT-B/32 with HTSAT and two videos a batch.

Knows which prompts a frame gets. The pool itself is in `perdure.families.audio_visual`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from perdure.families.audio_visual import front_ends, learning, settings
from perdure.families.audio_visual.inputs import Problem
from perdure.families.audio_visual.parts import TaskParts
from perdure.families.audio_visual.pool import PromptPool
from perdure.families.audio_visual.system import system_of
from perdure.families.audio_visual.towers import Insertions
from perdure.models.clap import Clap
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Predictions, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Training):
    """Settings of L2P."""

    blocks: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    """Blocks whose attention sees the prompts, counted from 0."""
    pool: Annotated[int, Field(ge=1)] = 10
    """Prompts to choose from."""
    top_k: Annotated[int, Field(ge=1)] = 5
    """Prompts chosen for a frame."""
    length: Annotated[int, Field(ge=1)] = 5
    """Tokens of a prompt."""
    pull: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the cosine between queries and the keys that they picked."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of Adam, coupled; above 0 it would wear down prompts that no frame picks."""

    def faults(self):
        if self.top_k > self.pool:
            yield "top_k", f"chooses {self.top_k} of a pool of {self.pool}"


class AvL2p:
    """State: the pool, and each task's head."""

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
        """A fresh pool and what stands on top."""
        config, dim = self.config, self.clip.vision_config.hidden_size
        pool = PromptPool(layers=len(config.blocks), pool=config.pool, length=config.length, dim=dim)
        return nn.ModuleDict({**self.system.new_parts(problem), "pool": pool})

    def insert(self, parts: Mapping[str, Any], frames: Tensor, patches: Tensor, segments: int) -> Insertions:
        """The chosen prompts; their keys are drawn towards the frames that chose them."""
        pool: PromptPool = parts["pool"]
        chosen, similarity = pool.choose(frames, top=self.config.top_k, vote="frame", segments=segments, summary="mean")
        penalty = -self.config.pull * similarity.gather(1, chosen).sum(1).mean()
        made = zip(self.config.blocks, pool.prefixes(chosen, layout="paired"))
        return Insertions(prefix={block: (p[:, 0], p[:, 1]) for block, p in made}, penalty=penalty)

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
