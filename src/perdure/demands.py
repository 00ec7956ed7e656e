"""What a stream demands of a method and of its data, checked before any work.

Knows kinds of tasks, whether tests name their task, and which examples are tested. Does not know methods or data;
imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection

from perdure.errors import RecipeError
from perdure.types import Stream


def check(
    stream: Stream,
    *,
    method: str,
    answers: Collection[str],
    needs_task_name: Collection[str],
    new_labels_only: str = "",
    split: str,
) -> None:
    """Assert that a method can go through a stream.

    Args:
        method: its name, for messages.
        answers: kinds of tasks that it answers.
        needs_task_name: kinds among them for which it must be told the task.
        new_labels_only: why a task may not bring examples of earlier tasks' classes, if so.
        split: which examples of the tasks are tested.

    Raises:
        RecipeError: a task is of another kind, its name is needed and not given, a class of an earlier task comes again
            and may not, or there is no example of the split.
    """
    kinds, where = {task.kind for task in stream}, f"stream {stream.name}"
    if unanswered := kinds - set(answers):
        raise RecipeError(
            f"method {method} cannot answer tasks of kind {', '.join(sorted(unanswered))}",
            where=where,
            expected=f"tasks of kind {', '.join(sorted(answers))}",
        )
    unnamed = set() if stream.task_revealed else kinds & set(needs_task_name)
    if unnamed:
        raise RecipeError(
            f"method {method} must be told the task to answer {', '.join(sorted(unnamed))}, and tests do not name it",
            where=where,
            expected="a stream whose tests name the task",
            todo="Set stream.task_revealed=true, or take a method that infers the task.",
        )
    if new_labels_only:
        _require_new_labels(stream, method, new_labels_only)
    lacking = [task.name for task in stream if split == "validation" and not len(task.validation)]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise RecipeError(
            f"no validation examples in {', '.join(lacking[:3])}{more}",
            where="evaluate.split",
            expected="validation examples in every task",
            todo="Set stream.validation_share where the stream has it, or evaluate.split=test.",
        )


def _require_new_labels(stream: Stream, method: str, reason: str) -> None:
    again = [task for task in stream if task.kind == "classify" and min(task.train.targets, default=0) < task.offset]
    if again:
        raise RecipeError(
            f"task '{again[0].name}' brings examples of classes of earlier tasks, and method {method} cannot learn "
            f"more of these: {reason}",
            where=f"stream {stream.name}",
            expected="tasks of new classes alone",
        )
