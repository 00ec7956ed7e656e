"""Forecasts: figures of a run in little, carried over to the whole."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from perdure import api, recipe
from perdure.cli import main
from perdure.testing import forecast, measuring
from perdure.testing.forecast import Whole
from perdure.testing.measuring import Learned, Passage, Questioned, spread
from perdure.testing.miniature import Stage

TIMES = np.array([1.0, 1.0])
STREAM = ("stream.train_per_class=40", "stream.test_per_class=10", "run.device=cpu", "run.threads=1", "run.seed=0")


@pytest.fixture
def asked():
    """Epochs 2, batches of 16; five tasks of 80 training and 20 test examples."""
    return recipe.load("sgd/digits", [*STREAM, "method.batch_size=16", "method.epochs=2"]).for_seed(0)


def passage(stream, counts, *, rest, steps, tested=(), reading=0.0):
    """Every step takes 10 ms, the first of a task 50 ms more; `rest` and `steps` are functions of the examples."""
    times = [TIMES * 0.06, *[TIMES * 0.01] * 9]
    learned = [
        Learned(
            task=type(task)(**{**vars(task), "train": task.train[:n]}),
            stages=[Stage(name="train", task=task.index, parameters=1, total=steps(n), times=times)],
            rest=TIMES * rest(n),
        )
        for task, n in zip(stream, counts)
    ]
    saves = {0: np.array([0.1, 0.1, 1000]), len(stream) - 1: np.array([0.1, 0.1, 5000])}
    found = Passage(build=TIMES, learned=learned, tested=list(tested), saves=saves, peak_memory={"resident": 10**9})
    found.first_reading = {"train": TIMES * reading, "test": TIMES * 0}
    found.event_bytes, found.alive = 100, sum(counts) * 1000
    return found


def whole(asked, **figures):
    stream = recipe.build_stream(asked)
    less, most = (passage(stream, [n] * 5, **figures) for n in (16, 64))
    return Whole(asked, stream, most, less, most, TIMES * 2, [len(task.train) for task in stream])


def test_what_grows_with_the_examples_is_told_from_what_does_not(asked):
    found = whole(asked, rest=lambda n: 1 + 0.1 * n, steps=lambda n: 2 * -(-n // 16))
    assert found.learning(3)[0, 0] == pytest.approx(1 + 0.1 * 80 + 0.05 + 10 * 0.01)


def test_steps_that_the_settings_do_not_explain_grow_in_proportion(asked):
    found = whole(asked, rest=lambda n: 0, steps=lambda n: 7 + n)
    assert found.learning(0)[0, 0] == pytest.approx(0.05 + 87 * 0.01)


def test_each_task_is_read_for_the_first_time_once(asked):
    found = whole(asked, rest=lambda n: 0, steps=lambda n: 1, reading=0.002)
    assert found.learning(0)[0, 0] == pytest.approx(80 * 0.002 + 0.06, abs=1e-9)


def questioned(after, asked, candidates, cost, fixed=0.0):
    at = {"after": after, "asked": asked, "candidates": candidates, "n": 10}
    costs = {"cost": np.array([cost, cost, 100.0]), "fixed": np.array([fixed, fixed, 0]), "predictor": np.zeros(3)}
    return Questioned(**at, **costs)


def test_tests_grow_with_the_plan_and_with_the_candidates(asked):
    tested = [questioned(0, 0, 2, 0.01), questioned(4, 0, 10, 0.03), questioned(4, 4, 10, 0.03)]
    found = whole(asked, rest=lambda n: 0, steps=lambda n: 1, tested=tested)
    assert [found.testing(t)[0] for t in range(5)] == pytest.approx([0.2, 0.6, 1.2, 2.0, 3.0])
    assert sum(found.testing(t)[2] for t in range(5)) == 15 * 20 * 100


def test_what_a_test_costs_by_itself_counts_once_a_test(asked):
    found = whole(asked, rest=lambda n: 0, steps=lambda n: 1, tested=[questioned(4, 0, 10, 0.01, fixed=3.0)])
    assert [found.testing(t)[0] for t in range(3)] == pytest.approx([3.2, 6.4, 9.6])


def test_a_metric_that_starts_a_program_is_told_from_what_each_test_costs(asked, monkeypatch):
    now = np.zeros(2)

    def answered(method, predict, task, *_, **__):
        now[:] += 0.01 * len(task.test)
        return list(task.test)

    def measured(task, settings, records):
        now[:] += 20 + 0.1 * len(records)

    monkeypatch.setattr(measuring, "clocks", now.copy)
    monkeypatch.setattr(measuring, "predicting", lambda *_: nullcontext())
    monkeypatch.setattr(measuring, "answered", answered)
    monkeypatch.setattr(measuring, "measured", measured)
    stream, method = recipe.build_stream(asked), SimpleNamespace(predictor=lambda query: None)
    found = measuring._test(method, stream, stream.tasks[0], 0, asked, SimpleNamespace(out=None))
    assert found.n == 20
    assert found.cost[:2] == pytest.approx([0.11, 0.11])
    assert found.fixed[:2] == pytest.approx([20, 20])


def test_memory_grows_by_the_tensors_that_grow_with_the_examples(asked):
    found = whole(asked, rest=lambda n: 0, steps=lambda n: 1).forecast()
    assert found.memory == {"resident": 10**9 + (400 - 5 * 64) * 1000}


def test_parts_add_up_and_the_ends_lie_around(asked):
    found = whole(asked, rest=lambda n: 0.1, steps=lambda n: 20).forecast()
    assert sum(part.seconds for part in found.parts) == pytest.approx(found.seconds)
    assert found.low < found.seconds < found.high
    assert found.left == found.seconds
    assert all(part.basis for part in found.parts)


def test_tasks_that_are_looked_at_lie_over_the_whole_stream():
    assert spread(1) == [0]
    assert spread(5) == [0, 1, 2, 3, 4]
    assert len(spread(100)) == 8
    assert {0, 1, 99} <= set(spread(100))


@pytest.mark.slow
def test_a_forecast_counts_what_the_run_does_and_knows_what_is_done(asked, tmp_path):
    asked = recipe.load(recipe.to_mapping(asked), [f"run.out={tmp_path}"])
    said = forecast.forecast(asked)
    assert said.tasks == 5
    assert said.left == said.seconds > 0
    assert list(tmp_path.iterdir()) == []
    api.execute(asked, quiet=True)
    folder = asked.folder(0)
    assert said.disk == pytest.approx(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()), rel=0.2)
    assert forecast.forecast(asked).left == 0
    (folder / "card.json").unlink()
    scores = json.loads((folder / "scores.json").read_text())
    scores["rows"] = [row for row in scores["rows"] if row["after"] < 3]
    (folder / "scores.json").write_text(json.dumps(scores))
    again = forecast.forecast(asked)
    assert again.done == 3
    assert 0 < again.left < again.seconds


def left_with(arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return left.value.code


@pytest.mark.slow
def test_the_command_says_it_in_80_columns_and_in_json(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = ["check", "prototype/digits", "stream.train_per_class=5", *STREAM[1:], "--forecast"]
    assert left_with(words) == 0
    out = capsys.readouterr().out
    assert "peak resident" in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert left_with([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {part["name"] for part in found["parts"]} == {"start", "learn", "test", "save"}


def test_one_of_several_processes_measures_nothing(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert left_with(["check", "sgd/digits", "--forecast"]) == 2
    assert "one process" in capsys.readouterr().err


def test_json_goes_with_a_forecast(capsys):
    assert left_with(["check", "sgd/digits", "--json"]) == 2
    assert "--forecast" in capsys.readouterr().err
