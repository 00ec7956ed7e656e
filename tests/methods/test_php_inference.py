"""Where the task is not named: the nearest keys choose it, and its scores stand in its own columns."""

from __future__ import annotations

from dataclasses import replace

import tiny_audio_visual as tiny
import torch

from perdure.evaluate import Evaluation
from perdure.methods.php import Config, Php
from perdure.methods.php.inference import answer_each, nearest_task, widen
from perdure.nn.audio_visual.inputs import Problem
from perdure.run import run
from perdure.runtime import Runtime
from perdure.types import Query, Stream

QUERY = Query(kind="classify", candidates=("a", "b", "c", "d"))
FIRST = Problem(name="one", kind="classify", candidates=("a", "b"))
SECOND = Problem(name="two", kind="classify", candidates=("c", "d"), offset=2)


def test_the_task_with_the_nearest_key_is_chosen_for_a_whole_video():
    queries = torch.tensor([[1.0, 0.1], [0.4, 0.5], [0, 1], [0.2, 1]])  # two videos of two frames
    keys = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])]
    assert nearest_task(queries, keys, segments=2).tolist() == [0, 1]


def test_scores_stand_in_the_columns_of_their_task():
    wide = widen(torch.tensor([[1.0, 2.0]]), SECOND, QUERY)
    assert wide.tolist() == [[-torch.inf, -torch.inf, 1, 2]]
    answers = answer_each(
        {"x": torch.tensor([[1.0, 2], [3, 4]])},
        torch.tensor([1, 0]),
        [lambda b: b["x"], lambda b: 10 * b["x"]],
        [FIRST, SECOND],
        QUERY,
    )
    assert answers.tolist() == [[-torch.inf, -torch.inf, 10, 20], [3, 4, -torch.inf, -torch.inf]]


def test_a_class_incremental_stream_is_answered_by_keys():
    tasks = []
    for index, offset in enumerate((0, 3)):
        task = tiny.task("classify", index)
        names = tuple(f"{name} {index}" for name in ("cat", "dog", "photo"))
        parts = {p: getattr(task, p).relabel(lambda t, offset=offset: t + offset) for p in ("train", "test")}
        tasks.append(replace(task, name=f"task {index}", candidates=names, offset=offset, **parts))
    stream = Stream(name="classes", tasks=tuple(tasks))
    method = Php(Config(**tiny.SETTINGS, key_pull=1.0), clip=tiny.clip(), audio=tiny.clap())
    scores = run(method, stream, evaluation=Evaluation(batch_size=2), runtime=Runtime(device="cpu", quiet=True))
    assert len(scores.rows) == 3 and all(0 <= row["values"]["accuracy"] <= 100 for row in scores.rows)
    drawn = Php(Config(**tiny.SETTINGS), clip=tiny.clip(), audio=tiny.clap())
    run(drawn, stream, evaluation=Evaluation(batch_size=2), runtime=Runtime(device="cpu", quiet=True))
    pulled, fixed = (m.tasks.kept["task 1"]["deep"]["key"] for m in (method, drawn))
    assert not torch.equal(pulled, fixed)
