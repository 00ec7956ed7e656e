"""Audio-visual tasks of different types, one after another: localize, parse, segment, answer, in any order.

Knows data sets and their order. The task's name is known at test unless `task_revealed` is false. Does not know
files or methods.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from perdure.settings.config import Named, Seed
from perdure.streams.selection import at_most
from perdure.types import Dataset, Stream, Task

METRICS = {
    "localize-events": ("score", "segment_accuracy"),
    "parse-video": ("score", "segment_f1", "event_f1", "llp_top1_official"),
    "segment": ("score", "mask_iou", "mask_f_score"),
    "answer": ("score", "avqa_accuracy", "avqa_by_type"),
}
"""Metrics by kind; `score` is each kind's own headline, so that tasks stand in one table."""
TASK_FACTS = ("segments", "clip_seconds", "vocabulary", "mask_size")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of an audio-visual stream."""

    data: Annotated[tuple[Annotated[Named, "data"], ...], Field(min_length=1)]
    """Data sets: `ave`, `llp`, `avs_s4`, `music_avqa`, or your own of these kinds."""
    order: tuple[str, ...] = ()
    """Names of the tasks to take, in this order: AVE, LLP, AVS, AVQA; empty: all as they are listed."""
    names: tuple[str, ...] = ()
    """Other names for the tasks, one for each data set."""
    train_per_task: Annotated[int, Field(ge=1)] | None = None
    """Only so many training videos of each task, chosen by `seed`."""
    test_per_task: Annotated[int, Field(ge=1)] | None = None
    """Only so many test videos of each task, chosen by `seed`."""
    seed: Seed = 0
    """Chooses the examples of `train_per_task` and `test_per_task`."""
    official_scores: bool = False
    """The headline of parsed videos is top-1, as in the published code, not F1."""
    task_revealed: bool = True
    """Tests name the task."""

    def faults(self):
        if self.names and len(self.names) != len(self.data):
            yield "names", f"{len(self.names)} names for {len(self.data)} data sets"
        if len(set(self.names)) != len(self.names):
            yield "names", "the same name twice"
        if len(set(self.order)) != len(self.order):
            yield "order", "the same name twice"


def build(config: Config) -> Stream:
    """One task a data set.

    Raises:
        RecipeError: `order` names no task, or a data set is of another kind.
    """
    datasets = [named.build() for named in config.data]
    named = dict(zip(config.names or _names(datasets), datasets))
    chosen = _ordered(named, config.order)
    tasks = tuple(_task(i, name, named[name], config) for i, name in enumerate(chosen))
    return Stream(
        name="audio-visual: " + ", ".join(chosen),
        tasks=tasks,
        shared_candidates=False,
        task_revealed=config.task_revealed,
        manifest={
            "stream": "audio_visual",
            "order": list(chosen),
            "seed": config.seed,
            "task_revealed": config.task_revealed,
            "tasks": [
                {"name": task.name, "kind": task.kind, "train": len(task.train), "test": len(task.test)}
                | {"fingerprint": _fingerprint(task), "left_out": named[task.name].facts.get("left_out", {})}
                for task in tasks
            ],
        },
    )


def _task(index: int, name: str, dataset: Dataset, config: Config) -> Task:
    from perdure.errors import RecipeError

    metrics = METRICS.get(dataset.kind, ("accuracy",))
    if dataset.kind not in METRICS and dataset.kind != "classify":
        raise RecipeError(f"{dataset.name} is of kind {dataset.kind}", where="stream.data", expected=", ".join(METRICS))
    if config.official_scores:
        metrics = tuple("score_official" if metric == "score" else metric for metric in metrics)
    key = (config.seed, name)
    return Task(
        index=index,
        name=name,
        kind=dataset.kind,
        candidates=dataset.candidates,
        train=at_most(dataset.train, config.train_per_task, (*key, "train")),
        validation=at_most(dataset.validation, config.test_per_task, (*key, "validation")),
        test=at_most(dataset.test, config.test_per_task, (*key, "test")),
        metrics=metrics,
        facts={fact: dataset.facts[fact] for fact in TASK_FACTS if fact in dataset.facts},
    )


def _ordered(named: dict[str, Dataset], order: tuple[str, ...]) -> tuple[str, ...]:
    from perdure.errors import RecipeError

    for name in order:
        if name not in named:
            raise RecipeError(f"`{name}` is no task", where="stream.order", expected=f"one of {', '.join(named)}")
    return order or tuple(named)


def _names(datasets: list[Dataset]) -> list[str]:
    """Names of the data sets, numbered where that is not unique."""
    raw = [dataset.called for dataset in datasets]
    return [name if raw.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(raw)]


def _fingerprint(task: Task) -> str:
    """sha256 over ids and targets."""
    digest = hashlib.sha256()
    for part in (task.train, task.test):
        for example in part:
            target = [str(mask).split("/")[-1] for mask in example.target] if task.kind == "segment" else example.target
            digest.update(json.dumps([example.id, target], sort_keys=True, default=str).encode())
    return digest.hexdigest()
