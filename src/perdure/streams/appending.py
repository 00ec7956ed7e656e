"""A stream that goes on: what is known of the tasks so far, and the tasks that come after them.

Knows tasks, and class names that come again. Does not know data sets or files. Tasks so far need no examples: what is
kept of them (index, name, kind, candidates, offset, metrics) is all that later tasks and tests need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from perdure.errors import DataError
from perdure.streams import class_names
from perdure.types import Stream, Task

KEPT = ("index", "name", "kind", "candidates", "offset", "metrics")
FACTS = ("segments", "clip_seconds", "vocabulary", "mask_size")
"""Facts of a task that a question of its kind needs: how long a clip is, which words a question may have."""


def known(stream: Stream) -> dict[str, Any]:
    """What `tasks.json` keeps of a stream, JSON-ready."""
    tasks = [{name: getattr(task, name) for name in KEPT} for task in stream]
    listed = [{k: list(v) if isinstance(v, tuple) else v for k, v in task.items()} for task in tasks]
    # Candidates of retrieval are the things themselves: images, texts.
    named = [task | {"candidates": [str(name) for name in task["candidates"]]} for task in listed]
    for task, one in zip(named, stream):
        task |= {"facts": facts} if (facts := {k: one.facts[k] for k in FACTS if k in one.facts}) else {}
    return {
        "tasks": named,
        "shared_candidates": stream.shared_candidates,
        "task_revealed": stream.task_revealed,
        "scope": stream.scope,
    }


def from_known(name: str, saved: Mapping[str, Any]) -> Stream:
    """The stream of what `known` gave: its tasks have no examples."""
    tasks = tuple(
        Task(
            index=task["index"],
            name=task["name"],
            kind=task["kind"],
            candidates=tuple(task["candidates"]),
            offset=task["offset"],
            metrics=tuple(task["metrics"]),
            facts=task.get("facts", {}),
        )
        for task in saved["tasks"]
    )
    how = {key: saved[key] for key in ("shared_candidates", "task_revealed", "scope")}
    return Stream(name=name, tasks=tasks, **how)


def append(known: Stream, more: Stream) -> Stream:
    """Both streams' tasks, one after another, as one stream would have them.

    Where tests ask among the classes of all tasks, classes are matched by their names: one that is known keeps its
    label, also in what the later tasks test; new ones follow. Ids of later examples get the number of their task.

    Raises:
        DataError: names of classes that cannot be told apart, or a domain that lacks a class or brings one.
    """
    tasks, labels = list(known.tasks), {}
    for task in more:
        index, names = len(tasks), {other.name for other in tasks}
        name = task.name if task.name not in names else f"{task.name} ({index + 1})"
        same = next((other.metrics for other in tasks if other.kind == task.kind), task.metrics)
        placed = replace(
            task,
            index=index,
            name=name,
            metrics=same,
            facts={**task.facts, "appended": True},
            **{split: getattr(task, split).prefixed(f"u{index}/") for split in ("train", "validation", "test")},
        )
        if task.kind == "classify" and known.shared_candidates:
            placed = _among_known(placed, tasks, labels)
        tasks.append(placed)
    return replace(known, name=f"{known.name}, {more.name}", tasks=tuple(tasks), manifest=_manifest(known, more))


def first(stream: Stream, count: int) -> Stream:
    """Its first tasks, as a stream."""
    manifest = dict(stream.manifest)
    if "tasks" in manifest:
        manifest["tasks"] = list(manifest["tasks"])[:count]
    return replace(stream, tasks=stream.tasks[:count], manifest=manifest)


def classes_of(tasks: Iterable[Task]) -> list[str]:
    """Names of the classes of several tasks, by label."""
    named = {t.offset + i: name for t in tasks if t.kind == "classify" for i, name in enumerate(t.candidates)}
    return [named[label] for label in sorted(named)]


def _among_known(task: Task, before: Sequence[Task], labels: dict[int, int]) -> Task:
    """The task with labels that go on from those of the tasks before it.

    Args:
        labels: of the stream that the task comes from -> ours; this task's are added.
    """
    known, where = classes_of(before), f"task '{task.name}'"
    found = class_names.match(task.candidates, known, task.facts.get("renames", {}), where=where)
    new = [name for name, label in zip(task.candidates, found) if label is None]
    place = iter(range(len(known), len(known) + len(new)))
    own = {task.offset + i: next(place) if label is None else label for i, label in enumerate(found)}
    labels |= own
    if task.facts.get("teaches") == "domain":
        missing = [name for label, name in enumerate(known) if label not in own.values()]
        if new or missing:
            what = f"brings the class {new[0]!r}" if new else f"lacks the class {missing[0]!r}"
            raise DataError(
                f"a domain has the classes that are known, and this one {what}",
                where=where,
                expected=f"the {len(known)} known classes",
                todo="To learn new classes, or more of some, take --as classes.",
            )
        candidates, offset = tuple(known), 0
    else:
        candidates, offset = tuple(new), len(known)
    parts = {s: getattr(task, s).relabel(labels.__getitem__) for s in ("train", "validation", "test")}
    return replace(task, candidates=candidates, offset=offset, **parts)


def _manifest(known: Stream, more: Stream) -> dict[str, Any]:
    """Both manifests; the lists of tasks and data sets are joined, by which changed data are found."""
    both = [dict(known.manifest), dict(more.manifest)]
    data = [m["data"] if isinstance(m.get("data"), list) else [m["data"]] for m in both if "data" in m]
    tasks = [task for m in both for task in m.get("tasks", [])]
    return {"stream": "chained", "parts": both, "data": [d for part in data for d in part], "tasks": tasks}
