"""Which task a video belongs to, where nobody says so: the one whose prompt keys are nearest to its frames.

That task's prompts are used. What is asked still says what kind of answer is wanted, so that the head is that of the
nearest task which the query can mean: of its kind, with classes among its candidates.

Knows queries, keys and columns of scores. Does not know how keys are trained or how a task is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.families.audio_visual.inputs import Problem
from perdure.layers.prompts import similarities
from perdure.types import Batch, Query


class Choice(NamedTuple):
    """Places among the learned tasks, for one video."""

    prompts: int
    """The task whose keys are nearest: its prompts are used."""
    head: int
    """The nearest one of those that the query can mean: it answers."""


def could_mean(query: Query, problem: Problem) -> bool:
    """Whether a query's kind is a problem's, and its candidates hold the problem's classes in their places."""
    begin = problem.offset - query.offset
    own = query.candidates[begin : begin + len(problem.candidates)] if begin >= 0 else ()
    return problem.kind == query.kind and own == problem.candidates


def choose(
    queries: Float[Tensor, "frames dim"],
    keys: Sequence[Float[Tensor, "pool dim"]],
    *,
    segments: int,
    fitting: Collection[int],
) -> list[Choice]:
    """For each video, by the highest cosine of a task's keys with its frames, mean over frames.

    Args:
        keys: of each learned task.
        fitting: places of the tasks that a query can mean, by its kind and candidates.
    """
    cosines = [similarities(queries, own).unflatten(0, (-1, segments)).mean(1).amax(1) for own in keys]
    by_task = torch.stack(cosines, dim=1)
    excluded = torch.tensor([i not in fitting for i in range(len(keys))], device=by_task.device)
    heads = by_task.masked_fill(excluded, -torch.inf).argmax(1)
    return [Choice(*pair) for pair in zip(by_task.argmax(1).tolist(), heads.tolist())]


def answer_each(
    batch: Batch,
    choices: Sequence[Choice],
    predictor: Callable[[Choice], Callable[[Batch], Any]],
    problems: Sequence[Problem],
    query: Query,
) -> Any:
    """Every video answered as was chosen for it, in the columns of the query."""
    found: list[Any] = [None] * len(choices)
    for choice in sorted(set(choices)):
        rows = [row for row, own in enumerate(choices) if own == choice]
        answers = widen(predictor(choice)(_rows(batch, torch.tensor(rows))), problems[choice.head], query)
        for place, row in enumerate(rows):
            found[row] = _row(answers, place)
    return _stacked(found)


def widen(answers: Any, problem: Problem, query: Query) -> Any:
    """The columns of a problem's classes among those of the query; -inf (or absent) for the others."""
    if problem.kind == "segment":
        return answers
    if isinstance(answers, Mapping):
        return {
            name: _columns(value, problem, query, fill=-torch.inf if name == "scores" else 0.0)
            for name, value in answers.items()
        }
    return _columns(answers, problem, query, fill=-torch.inf)


def _columns(scores: Tensor, problem: Problem, query: Query, *, fill: float) -> Tensor:
    wide = scores.new_full((*scores.shape[:-1], len(query.candidates)), fill)
    begin = problem.offset - query.offset
    wide[..., begin : begin + scores.shape[-1]] = scores
    return wide


def _rows(batch: Batch, rows: Tensor) -> Batch:
    return {
        name: value[rows.to(value.device, non_blocking=True)] if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _row(answers: Any, place: int) -> Any:
    return {n: v[place] for n, v in answers.items()} if isinstance(answers, Mapping) else answers[place]


def _stacked(found: Sequence[Any]) -> Any:
    if isinstance(found[0], Mapping):
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}
    return torch.stack(list(found))
