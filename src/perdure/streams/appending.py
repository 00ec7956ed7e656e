"""A stream that goes on: what is known of the tasks so far, and the tasks that come after them.

Knows tasks, and class names that come again. Does not know data sets or files. Tasks so far need no examples: what is
kept of them (index, name, kind, candidates, offset, metrics) is all that later tasks and tests need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    tasks = tuple(Task(**{k: tuple(v) if isinstance(v, list) else v for k, v in t.items()}) for t in saved["tasks"])
    how = {key: saved[key] for key in ("shared_candidates", "task_revealed", "scope")}
    return Stream(name=name, tasks=tasks, **how)
