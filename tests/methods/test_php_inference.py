"""Where the task is not named: the nearest keys choose it, and its scores stand in its own columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_audio_visual as tiny
import torch
from torch.utils.data import default_collate

from perdure.errors import RecipeError
from perdure.evaluate import Evaluation, read_records
from perdure.families.audio_visual.front_ends import embed
from perdure.families.audio_visual.inputs import Problem
from perdure.families.audio_visual.learning import predict_with
from perdure.loop import run
from perdure.methods.php import Config, Php
from perdure.methods.php.inference import Choice, answer_each, choose, could_mean, widen
from perdure.metrics import Inferred
from perdure.metrics.task_identity import task_accuracy
from perdure.runtime import Runtime
from perdure.types import Example, Examples, Query, Stream, Task

PARTS = ("train", "test")

QUERY = Query(kind="classify", candidates=("a", "b", "c", "d"))
FIRST = Problem(name="one", kind="classify", candidates=("a", "b"))
SECOND = Problem(name="two", kind="classify", candidates=("c", "d"), offset=2)


def test_the_task_with_the_nearest_key_lends_its_prompts_to_a_whole_video():
    queries = torch.tensor([[1.0, 0.1], [0.4, 0.5], [0, 1], [0.2, 1]])  # two videos of two frames
    keys = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])]
    assert choose(queries, keys, segments=2, fitting=[0, 1]) == [(0, 0), (1, 1)]
    assert choose(queries, keys, segments=2, fitting=[1]) == [(0, 1), (1, 1)]


def test_a_query_can_mean_tasks_of_its_kind_with_their_classes_in_their_places():
    assert could_mean(QUERY, FIRST) and could_mean(QUERY, SECOND)
    assert not could_mean(QUERY, replace(FIRST, candidates=("b", "a")))
    assert not could_mean(QUERY, replace(FIRST, kind="parse-video"))
    assert not could_mean(replace(QUERY, offset=2), FIRST)


def test_scores_stand_in_the_columns_of_their_task():
    wide = widen(torch.tensor([[1.0, 2.0]]), SECOND, QUERY)
    assert wide.tolist() == [[-torch.inf, -torch.inf, 1, 2]]
    answers = answer_each(
        {"x": torch.tensor([[1.0, 2], [3, 4]])},
        [Choice(1, 1), Choice(0, 0)],
        lambda choice: lambda b: b["x"] * (10 if choice.prompts else 1),
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
    accuracies = [row["values"]["task_accuracy"] for row in scores.rows]
    assert accuracies[0] == 100 and all(0 <= value <= 100 for value in accuracies)  # the first task is the only one


def painted(index: int, color: int) -> Task:
    """A task whose frames are all of one color."""
    task = tiny.task("classify", index)

    def paint(example: Example) -> Example:
        return replace(example, inputs={**example.inputs, "frames": [np.full((16, 16, 3), color, np.uint8)] * 3})

    parts = {p: Examples.of([paint(e) for e in getattr(task, p).relabel(lambda t: t + 3 * index)]) for p in PARTS}
    names = tuple(f"{name} {index}" for name in ("cat", "dog", "photo"))
    return replace(task, name=f"task {index}", candidates=names, offset=3 * index, **parts)


def test_tasks_that_look_different_are_told_apart_by_trained_keys(tmp_path):
    stream = Stream(name="colors", tasks=(painted(0, 0), painted(1, 255)))
    settings = tiny.SETTINGS | {"key_pull": 1.0, "prompt_start": "fresh", "epochs": 12, "lr": 3e-2, "lr_min": 1e-3}
    method = Php(Config(**settings), clip=tiny.clip(), audio=tiny.clap())
    scores = run(method, stream, runtime=Runtime(device="cpu", quiet=True, out=tmp_path))
    assert [row["values"]["task_accuracy"] for row in scores.rows] == [100, 100, 100]
    saved = read_records(tmp_path / "predictions" / "1_0.jsonl")
    assert saved[0]["task"] == saved[0]["inferred"] == "task 0"
    assert task_accuracy([*saved, {"task": "task 0", "inferred": "task 1"}]) == 75


def test_another_kind_of_task_may_lend_its_prompts_and_the_head_stays(tmp_path):
    stream = replace(tiny.stream("localize-events", "answer"), task_revealed=False)
    method = Php(Config(**tiny.SETTINGS), clip=tiny.clip(), audio=tiny.clap())
    scores = run(method, stream, runtime=Runtime(device="cpu", quiet=True))
    assert all({"score", "task_accuracy"} <= row["values"].keys() for row in scores.rows)
    tasks, problems = method.tasks, list(method.tasks.problems.values())
    batch = default_collate([method.preprocess(e, False) for e in stream.tasks[0].test])
    frames, _, _ = embed(method.system, problems[0], batch)
    for name, sign in (("localize-events", -1), ("answer", 1)):  # the other task's key is the nearest to every frame
        tasks.kept[name]["deep"]["key"] = sign * frames.mean((0, 1))[None]
    with torch.no_grad():
        found = method.predictor(stream.query(stream.tasks[0], after=1))(batch)
    assert isinstance(found, Inferred) and found.tasks == ["answer"] * 3
    lent = tasks.assemble(problems[0], borrowed=("mid", "deep"), lender="answer").eval()
    expected = predict_with(method.system, problems[0], lent, method.insert)(batch)
    assert torch.equal(found.predictions, expected)


@pytest.mark.parametrize("setting", [{"deep": False}, {"shared": ("adapters", "deep")}])
def test_without_keys_of_their_own_the_task_must_be_named(setting):
    stream = replace(tiny.stream("localize-events"), task_revealed=False)
    method = Php(Config(**tiny.SETTINGS | setting), clip=tiny.clip(), audio=tiny.clap())
    with pytest.raises(RecipeError, match=r"must be told the task to answer localize-events"):
        run(method, stream, runtime=Runtime(device="cpu", quiet=True))
    assert not method.tasks.problems, "it learned before it was refused"


def test_a_task_that_was_named_has_no_inferred_one():
    method = Php(Config(**tiny.SETTINGS), clip=tiny.clip(), audio=tiny.clap())
    scores = run(method, tiny.stream("localize-events"), runtime=Runtime(device="cpu", quiet=True))
    assert "task_accuracy" not in scores.rows[0]["values"]
