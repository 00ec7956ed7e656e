"""Which task a video belongs to, where nobody says so: the one whose prompt keys are nearest to its frames.

Knows queries, keys and columns of scores. Does not know how keys are trained or how a task is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.nn.audio_visual.inputs import Problem
from perdure.nn.audio_visual.pool import similarities
from perdure.types import Batch, Query


def nearest_task(
    queries: Float[Tensor, "frames dim"], keys: Sequence[Float[Tensor, "pool dim"]], *, segments: int
) -> Int[Tensor, " videos"]:
    """For each video the task with the key of the highest cosine, mean over its frames."""
    by_task = [similarities(queries, own).unflatten(0, (-1, segments)).mean(1).amax(1) for own in keys]
    return torch.stack(by_task, dim=1).argmax(1)


def answer_each(
    batch: Batch,
    chosen: Int[Tensor, " videos"],
    predictors: Sequence[Callable[[Batch], Any]],
    problems: Sequence[Problem],
    query: Query,
) -> Any:
    """Every video answered by the task chosen for it, in the columns of the query."""
    found: list[Any] = [None] * len(chosen)
    for index, (predict, problem) in enumerate(zip(predictors, problems)):
        rows = (chosen == index).nonzero()[:, 0]
        if len(rows):
            answers = widen(predict(_rows(batch, rows)), problem, query)
            for place, row in enumerate(rows.tolist()):
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
    return {name: value[rows.to(value.device)] if isinstance(value, Tensor) else value for name, value in batch.items()}


def _row(answers: Any, place: int) -> Any:
    return {n: v[place] for n, v in answers.items()} if isinstance(answers, Mapping) else answers[place]


def _stacked(found: Sequence[Any]) -> Any:
    if isinstance(found[0], Mapping):
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}
    return torch.stack(list(found))
