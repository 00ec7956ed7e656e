"""Learning and answering with paired towers, given what a method inserts into them.

Knows batches, parts, the readout and `training.fit`. Does not know any method: it hands in a function from parts and
embedded inputs to `Insertions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from perdure import training
from perdure.families.audio_visual import front_ends, readout, towers
from perdure.families.audio_visual.front_ends import embed
from perdure.families.audio_visual.inputs import Problem, problem_of
from perdure.families.audio_visual.parts import TaskParts
from perdure.families.audio_visual.system import System
from perdure.families.audio_visual.towers import Insertions
from perdure.loading import ExampleBatches
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Predictions, Query, Task

Insert = Callable[[Any, Tensor, Tensor, int], Insertions]
"""``(parts, frames [frames tokens dim], patches [frames tokens width], segments) -> Insertions``."""


def forward(
    system: System,
    problem: Problem,
    parts: Any,
    insert: Insert,
    batch: Batch,
    *,
    texts: Any,
    seen_classes: Tensor | None = None,
    update: bool = False,
) -> dict[str, Tensor]:
    """One pass over a batch, from its videos to `readout.outputs`, which `readout.loss` takes.
    With ``penalty``, what the insertions add to the loss.

    Args:
        seen_classes: None: they are encoded here, with gradients.
    """
    # 1) front ends, frozen: frames as CLIP's tokens, sound as CLAP's patches
    frames, patches, segments = embed(system, problem, batch, update=update)
    # 2) what the method makes of them for each block: adapters, generated and static prompts
    insertions = insert(parts, frames, patches, segments)
    # 3) both towers in lock-step, with the insertions
    with towers.stochastic_depth(system.clap, highest=0.1 if system.modes.augmentation else 0.0):
        visual, audio = towers.run(system.clip, system.clap, frames, patches, insertions)
    # 4) class prompts, where the problem has classes, and 5) the head of the problem's kind
    if seen_classes is None:
        seen_classes = system.seen_classes(parts, texts)
    out = readout.outputs(
        problem,
        system.clip,
        system.clap,
        parts,
        visual,
        audio,
        batch,
        segments=segments,
        texts=texts,
        seen_classes=seen_classes,
        settings=system.readout,
    )
    return out if insertions.penalty is None else out | {"penalty": insertions.penalty}


def learn_task(
    system: System,
    tasks: TaskParts,
    insert: Insert,
    task: Task,
    config: Any,
    *,
    runtime: Runtime,
) -> None:
    """One task: its parts made ready, trained by Adam as `config` says, and kept."""
    problem = problem_of(task)
    parts = tasks.begin(problem, runtime)
    how, size = adam(config), config.batch_size
    fit(system, problem, parts, insert, task.train, how, runtime=runtime, batch_size=size)
    tasks.finish(problem)


def fit(
    system: System,
    problem: Problem,
    parts: nn.ModuleDict,
    insert: Insert,
    examples: Sequence[Example],
    settings: training.Fit,
    *,
    runtime: Runtime,
    batch_size: int,
    shuffle: bool = True,
    stage: str = "train",
) -> list[float]:
    """Train all parts on one problem."""
    system.open(runtime)
    texts = system.texts(problem)

    def loss(batch: Batch) -> dict[str, Tensor]:
        out = forward(system, problem, parts, insert, batch, texts=texts, update=True)
        values = readout.loss(problem, out, batch, system.readout)
        more = out.get("penalty")
        return values if more is None else values | {"loss": values["loss"] + more, "penalty": more}

    batches = ExampleBatches(
        examples,
        partial(front_ends.preprocess, system),
        batch_size=batch_size,
        runtime=runtime,
        stage=stage,
        training=True,
        shuffle=shuffle,
        collate=front_ends.collate,
    )
    parameters = {name: p for name, p in parts.named_parameters() if p.requires_grad}
    losses = training.fit(
        loss,
        parameters,
        batches,
        settings,
        runtime=runtime,
        stage=stage,
        keep=_buffers(system, parts),
    )
    system.report(runtime)
    return losses


def _buffers(system: System, parts: nn.ModuleDict) -> dict[str, Any] | None:
    """What changes in training beside parameters, if anything."""
    norm = system.clap.tower.batch_norm
    moved = {"mel.mean": norm.running_mean, "mel.variance": norm.running_var} if system.modes.audio_statistics else {}
    buffers = dict(parts.named_buffers()) | moved
    return {"buffers": buffers} if buffers else None


def predictor(system: System, tasks: TaskParts, insert: Insert, query: Query) -> Callable[[Batch], Predictions]:
    """A function of a batch for the task that a query names."""
    problem, parts = tasks.of(query)
    if system.modes.head_modes:
        parts.train()
    return predict_with(system, problem, parts.to(system.clip.device), insert)


def predict_with(system: System, problem: Problem, parts: Any, insert: Insert) -> Callable[[Batch], Predictions]:
    """A function of a batch; the texts are encoded here, once."""
    texts = system.texts(problem)
    with torch.no_grad():
        seen_classes = system.seen_classes(parts, texts)

    def predict(batch: Batch) -> Predictions:
        out = forward(system, problem, parts, insert, batch, texts=texts, seen_classes=seen_classes)
        return readout.answer(problem, out)

    return predict


def adam(config: Any) -> training.Fit:
    """The published schedule of PHP with a config's `epochs`, `lr`, `lr_min`, `weight_decay` and `clip_norm`."""
    return training.Fit(
        epochs=config.epochs,
        lr=config.lr,
        schedule="cosine_epoch",
        floor=config.lr_min / config.lr,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
    )


def count(parts: Any) -> int:
    """Parameters of all parts."""
    return sum(p.numel() for part in (parts or {}).values() for p in part.parameters())
