"""Joint training of adapters between CLIP and CLAP: keeps all videos and trains anew on all; the upper bound.

After each task the adapters start from fresh ones and are trained on all tasks so far, whose batches come mixed. Not a
continual method: storage and time grow with every task.

Needs: 24 GB GPU memory for ViT-B/32 with HTSAT and two videos a batch.

Knows how batches of tasks of different types follow one another. The adapters are those of `av_finetune`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from perdure import kept_examples, training
from perdure.errors import RecipeError
from perdure.families.audio_visual import front_ends, learning, readout, settings
from perdure.families.audio_visual.adapter import cross_adapters, cross_insertions
from perdure.families.audio_visual.inputs import Problem, problem_of
from perdure.families.audio_visual.system import system_of
from perdure.families.audio_visual.towers import Insertions
from perdure.loading import ExampleBatches
from perdure.models.clap import Clap
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Predictions, Query, Task

OWN = ("context", "head")
"""Parts that each task has for itself."""


@dataclass(frozen=True, kw_only=True)
class Config(settings.Training):
    """Settings of joint training."""

    blocks: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    """Blocks with adapters, counted from 0."""
    audio_residual: bool = True
    """What audio adapters give stays in the audio stream."""
    latents: Annotated[int, Field(ge=1)] = 32
    """Learned tokens of an adapter that carry the other modality over."""
    reduction: Annotated[int, Field(ge=1)] = 8
    """Width of the tokens over that of an adapter's bottleneck."""


class AvJoint:
    """State: all videos of all tasks, the shared parts, and each task's own."""

    Config = Config
    answers = frozenset({"localize-events", "parse-video", "segment", "answer", "classify"})
    new_labels_only = "each task has a head of its own"
    needs_task_name = answers

    def __init__(self, config: Config, *, clip: Clip, audio: Clap) -> None:
        self.config, self.clip, self.audio = config, clip, audio
        self.system = system_of(config, clip, audio)
        self.problems: dict[str, Problem] = {}
        self.examples: dict[str, list[Example]] = {}
        self.parts = nn.ModuleDict()

    def preprocess(self, example: Example, training: bool) -> Batch:
        return front_ends.preprocess(self.system, example, training)

    def collate(self, items: list[Batch]) -> Batch:
        return front_ends.collate(items)

    def learn(self, task: Task, runtime: Runtime) -> None:
        self.system.open(runtime)
        problems = self.problems | {task.name: problem_of(task)}
        examples = self.examples | {task.name: list(task.train)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(runtime.key("parts"))
            parts = self.make_parts(problems).to(runtime.device).train()
        names = list(problems)
        texts = {name: self.system.texts(problem) for name, problem in problems.items()}

        def loss(batch: Batch) -> dict[str, Tensor]:
            name = names[batch["task"]]
            problem, own = problems[name], _of_task(parts, names.index(name))
            out = learning.forward(self.system, problem, own, self.insert, batch, texts=texts[name], update=True)
            return readout.loss(problem, out, batch, self.system.readout)

        mixed = Mixed([self._batches(examples[n], runtime, f"train {i}") for i, n in enumerate(names)], runtime)
        buffers = dict(parts.named_buffers())
        training.fit(
            loss,
            dict(parts.named_parameters()),
            mixed,
            learning.adam(self.config),
            runtime=runtime,
            stage="train",
            keep={"buffers": buffers} if buffers else None,
        )
        self.system.report(runtime)
        self.parts, self.problems, self.examples = parts.eval(), problems, examples

    def _batches(self, examples: Sequence[Example], runtime: Runtime, stage: str) -> ExampleBatches:
        return ExampleBatches(
            examples,
            self.preprocess,
            batch_size=self.config.batch_size,
            runtime=runtime,
            stage=stage,
            training=True,
            collate=self.collate,
        )

    def make_parts(self, problems: Mapping[str, Problem]) -> nn.ModuleDict:
        """Fresh parts: the shared ones, and ``task_0``, ``task_1`` ... with those of each task."""
        config = self.config
        cross = cross_adapters(self.clip, self.audio, config.blocks, latents=config.latents, reduction=config.reduction)
        shared: dict[str, nn.Module] = {"adapters": cross}
        for index, problem in enumerate(problems.values()):
            made = self.system.new_parts(problem)
            shared |= {name: part for name, part in made.items() if name not in OWN and name not in shared}
            shared[f"task_{index}"] = nn.ModuleDict({name: part for name, part in made.items() if name in OWN})
        return nn.ModuleDict(shared)

    def insert(self, parts: Mapping[str, Any], frames: Tensor, patches: Tensor, segments: int) -> Insertions:
        """The adapters of every block."""
        return cross_insertions(parts["adapters"], audio_residual=self.config.audio_residual)

    def predictor(self, query: Query) -> Callable[[Batch], Predictions]:
        name = query.task or ""
        if name not in self.problems:
            raise RecipeError(f"task '{name}' has not been learned", where="query", expected="a task seen")
        parts = _of_task(self.parts, list(self.problems).index(name))
        return learning.predict_with(self.system, self.problems[name], parts, self.insert)

    def state_dict(self) -> dict[str, Any]:
        return {
            "problems": [asdict(problem) for problem in self.problems.values()],
            "examples": {name: kept_examples.pack(examples) for name, examples in self.examples.items()},
            "parts": {name: tensor.detach().clone() for name, tensor in self.parts.state_dict().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        facts = [{**p, "candidates": tuple(p["candidates"])} for p in state["problems"]]
        self.problems = {p["name"]: Problem(**p) for p in facts}
        stored = state["examples"]  # an export carries none
        self.examples = {name: kept_examples.unpack(stored[name]) for name in self.problems if name in stored}
        self.parts = self.make_parts(self.problems).eval() if self.problems else nn.ModuleDict()
        self.parts.load_state_dict(dict(state["parts"]))

    def facts(self) -> dict[str, Any]:
        """What is kept of past tasks, for the result card."""
        videos = sum(len(examples) for examples in self.examples.values())
        return {"extra_parameters": learning.count(self.parts), "memory_examples": videos}


class Mixed:
    """Batches of several tasks in a keyed order; each says under ``task`` whose it is."""

    def __init__(self, tasks: Sequence[ExampleBatches], runtime: Runtime) -> None:
        self.tasks, self.runtime = tasks, runtime

    def __len__(self) -> int:
        return sum(len(batches) for batches in self.tasks)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch | None, float]]:
        owners = torch.cat([torch.full((len(batches),), i) for i, batches in enumerate(self.tasks)])
        owners = owners[self.runtime.permutation(len(owners), "mixed", epoch)].tolist()
        done = [owners[:start].count(i) for i in range(len(self.tasks))]
        parts = [batches.epoch(epoch, start=n) for batches, n in zip(self.tasks, done)]
        for owner in owners[start:]:
            batch, share = next(parts[owner])
            yield (None if batch is None else {**batch, "task": owner}), share


def _of_task(parts: nn.ModuleDict, index: int) -> dict[str, nn.Module]:
    """Shared parts and those of one task, under their plain names."""
    own = parts[f"task_{index}"]
    assert isinstance(own, nn.ModuleDict)
    shared = {name: part for name, part in parts.items() if not name.startswith("task_")}
    return shared | dict(own.items())
