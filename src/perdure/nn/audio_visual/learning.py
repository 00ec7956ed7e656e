"""Learning and answering with paired towers, given what a method inserts into them.

Knows batches, parts, the readout and `training.fit`. Does not know any method: it hands in a function from parts and
embedded inputs to `Insertions`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from perdure import training
from perdure.loading import ExampleBatches
from perdure.nn.audio_visual import prefix, readout, towers
from perdure.nn.audio_visual.inputs import Problem, Statistics, problem_of, statistics_of
from perdure.nn.audio_visual.parts import TaskParts
from perdure.nn.audio_visual.prefix import embed
from perdure.nn.audio_visual.prefix_cache import PrefixCache
from perdure.nn.audio_visual.readout import Readout
from perdure.nn.audio_visual.towers import Insertions
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Predictions, Query, Task

if TYPE_CHECKING:
    from perdure.models.clap import Clap
    from perdure.models.clip import Clip

Insert = Callable[[Any, Tensor, Tensor, int], Insertions]
"""``(parts, frames [frames tokens dim], patches [frames tokens width], segments) -> Insertions``."""


@dataclass(frozen=True, kw_only=True)
class Modes:
    """In which modes the published code runs, against which those of this library are the usual ones."""

    audio_statistics: bool = False
    """Normalize mel bands by the statistics of the batch, in training and at test."""
    head_modes: bool = False
    """Heads stay in training mode at test (dropout, batch statistics)."""
    augmentation: bool = False
    """SpecAugment and stochastic depth of the audio tower, in training and at test."""
    mixup: bool = False
    """Mix spectrograms of segmentation tasks, in training and at test."""


@dataclass(frozen=True, kw_only=True)
class System:
    """Two frozen towers and the settings of all that is the same for all methods over them."""

    clip: Clip
    clap: Clap
    readout: Readout = field(default_factory=Readout)
    modes: Modes = field(default_factory=Modes)
    pixel_statistics: Literal["imagenet", "clip"] = "imagenet"
    cache_gigabytes: float = 0.0
    """Space for what the front ends make of videos; 0: no cache."""
    cache_folder: Path | None = None
    """None: in the run's folder."""
    cache: PrefixCache | None = field(init=False, default=None)
    _texts: dict[Any, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        towers.check_pair(self.clip, self.clap)
        if self.cache_gigabytes:
            facts = prefix.facts(self.clip, self.clap, self.statistics)
            cache = PrefixCache(self.cache_folder, gigabytes=self.cache_gigabytes, facts=facts)
            object.__setattr__(self, "cache", cache)

    @property
    def statistics(self) -> Statistics:
        """Mean and deviation that pixels are normalized with."""
        return statistics_of(self.clip, self.pixel_statistics)

    def preprocess(self, example: Example, training: bool) -> Batch:
        """See `prefix.preprocess`."""
        return prefix.preprocess(self, example, training)

    def collate(self, items: Sequence[Batch]) -> Batch:
        """See `prefix.collate`."""
        return prefix.collate(items)

    def open(self, runtime: Runtime) -> None:
        """Both towers on the run's device, the cache where the run has it."""
        self.to(runtime.device)
        if self.cache is not None:
            self.cache.open(runtime.out)

    def report(self, runtime: Runtime) -> None:
        """Log what the cache has done since it was opened."""
        if self.cache is not None:
            runtime.log("front_ends", **self.cache.counts, bytes=int(self.cache.used))

    def to(self, device: torch.device) -> None:
        """Move both towers."""
        self.clip.to(device)
        self.clap.to(device)

    def new_parts(self, problem: Problem) -> dict[str, nn.Module]:
        """Fresh parts of the readout."""
        return readout.new_parts(problem, self.clip, self.clap, self.readout)

    def texts(self, problem: Problem) -> Any:
        """The fixed texts of a problem's classes, encoded once."""
        key = (problem.kind, problem.candidates, self.clip.device)
        if key not in self._texts:
            self._texts[key] = readout.texts_of(problem, self.clip, self.clap, self.readout)
        return self._texts[key]

    def seen_classes(self, parts: Any, texts: Any) -> Tensor | None:
        """Features of the class prompts, if the problem has any."""
        return None if texts is None else readout.class_features(self.clip, parts, texts, self.readout)


def system_of(config: Any, clip: Clip, clap: Clap) -> System:
    """The towers with a config's `mask_dim`, `mask_heads`, `pixel_statistics`, `cache_gigabytes` and `cache_folder`."""
    return System(
        clip=clip,
        clap=clap,
        readout=Readout(mask_dim=config.mask_dim, mask_heads=config.mask_heads),
        pixel_statistics=config.pixel_statistics,
        cache_gigabytes=config.cache_gigabytes,
        cache_folder=config.cache_folder,
    )


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
    """One pass over a batch; `seen_classes` None: they are encoded here, with gradients."""
    frames, patches, segments = embed(system, problem, batch, update=update)
    insertions = insert(parts, frames, patches, segments)
    with towers.stochastic_depth(system.clap, highest=0.1 if system.modes.augmentation else 0.0):
        visual, audio = towers.run(system.clip, system.clap, frames, patches, insertions)
    if seen_classes is None:
        seen_classes = system.seen_classes(parts, texts)
    return readout.outputs(
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


def learn_task(
    system: System,
    tasks: TaskParts,
    insert: Insert,
    task: Task,
    config: Any,
    *,
    runtime: Runtime,
    extra: Callable[[Any], Tensor | None] | None = None,
) -> None:
    """One task: its parts made ready, trained by Adam as `config` says, and kept. `extra`: see `fit`."""
    problem = problem_of(task)
    parts = tasks.begin(problem, runtime)
    how, size = adam(config), config.batch_size
    fit(system, problem, parts, insert, task.train, how, runtime=runtime, batch_size=size, extra=extra)
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
    extra: Callable[[Any], Tensor | None] | None = None,
    stage: str = "train",
) -> list[float]:
    """Train all parts on one problem.

    Args:
        extra: parts -> a term that is added to the loss (set aside by `insert` during the same pass), if any.
    """
    system.open(runtime)
    texts = system.texts(problem)

    def loss(batch: Batch) -> dict[str, Tensor]:
        out = forward(system, problem, parts, insert, batch, texts=texts, update=True)
        values = readout.loss(problem, out, batch, system.readout)
        more = extra(parts) if extra else None
        return values if more is None else values | {"loss": values["loss"] + more, "extra": more}

    batches = ExampleBatches(
        examples,
        system.preprocess,
        batch_size=batch_size,
        runtime=runtime,
        stage=stage,
        training=True,
        shuffle=shuffle,
        collate=system.collate,
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
