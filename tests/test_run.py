"""The straight line: what is tested when, what is refused, and that a run survives kills and processes."""

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from perdure.errors import CheckpointError, Interrupted, RecipeError
from perdure.evaluate import Evaluation, evaluate, read_records
from perdure.keys import example_seed
from perdure.loop import run, seed_everything
from perdure.runtime import Runtime
from perdure.testing import tiny_stream
from perdure.testing.running import close
from tests.toy import Config, Toy

ROOT = Path(__file__).parent.parent


def go(out=None, stream=None, **settings):
    seed_everything(0)
    runtime = Runtime(device="cpu", out=out, quiet=True)
    return run(Toy(Config()), stream or tiny_stream(), runtime=runtime, **settings)


def cells(scores):
    return [(row["after"], row["asked"]) for row in scores.rows]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("seen", [(0, 0), (1, 0), (1, 1)]),
        ("current", [(0, 0), (1, 1)]),
        ("all", [(0, 0), (0, 1), (1, 0), (1, 1)]),
        ("seen+next", [(0, 0), (0, 1), (1, 0), (1, 1)]),
        ("last", [(1, 0), (1, 1)]),
    ],
)
def test_the_plan_says_which_tasks_are_tested(plan, expected):
    assert cells(go(stream=tiny_stream(tasks=2), evaluation=Evaluation(plan=plan))) == expected


def test_testing_before_the_first_task_gives_row_minus_one():
    assert cells(go(stream=tiny_stream(tasks=2), evaluation=Evaluation(plan="all", start=True)))[:2] == [
        (-1, 0),
        (-1, 1),
    ]


def test_the_folder_holds_scores_records_and_events(tmp_path):
    scores = go(tmp_path)
    saved = json.loads((tmp_path / "scores.json").read_text())
    assert saved == scores.to_json()
    records = read_records(tmp_path / "predictions" / "2_0.jsonl")
    assert [r["id"] for r in records] == [e.id for e in tiny_stream().tasks[0].test]
    correct = sum(r["predicted"] == r["target"] for r in records)
    cell = next(row for row in saved["rows"] if (row["after"], row["asked"]) == (2, 0))
    assert cell["values"]["accuracy"] == pytest.approx(100 * correct / len(records))
    assert not list(tmp_path.glob("checkpoint/task_*"))


def test_a_finished_run_trains_nothing(tmp_path):
    first = go(tmp_path)
    events = (tmp_path / "events.jsonl").read_bytes()
    assert go(tmp_path).rows == first.rows
    assert (tmp_path / "events.jsonl").read_bytes() == events


def test_kinds_that_a_method_cannot_answer_are_refused_before_any_work(tmp_path):
    stream = tiny_stream()
    other = replace(stream, tasks=(replace(stream.tasks[0], kind="caption"),))
    with pytest.raises(RecipeError, match="Toy cannot answer tasks of kind caption"):
        go(tmp_path, other)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_stream_is_refused(tmp_path):
    go(tmp_path, tiny_stream(tasks=3))
    with pytest.raises(CheckpointError, match="of a stream whose first tasks are"):
        go(tmp_path, tiny_stream(tasks=2))


def test_a_test_pass_goes_on_where_it_stopped(tmp_path):
    """Records that are there already, with a torn last line, are kept; the rest is predicted."""
    whole = go(tmp_path / "whole")
    file = tmp_path / "whole" / "predictions" / "0_0.jsonl"
    records = file.read_text().splitlines()
    part = tmp_path / "again" / "predictions" / "0_0.part0"
    part.parent.mkdir(parents=True)
    part.write_text("\n".join([*records[:3], records[3][:20]]))
    assert go(tmp_path / "again", evaluation=Evaluation(batch_size=2)).rows == whole.rows
    assert close(read_records(part.parent / "0_0.jsonl"), read_records(file)), "up to the rounding of other batches"
    assert not part.exists()


class Online(Toy):
    """Answers by how many examples it has met, and notes which."""

    carries_state = True

    def __init__(self, config):
        super().__init__(config)
        self.met = []

    def predictor(self, query):
        self.met = []

        def predict(batch):
            self.met += [int(seed) for seed in batch["seed"]]
            scores = torch.zeros(len(batch["x"]), len(query.candidates))
            scores[:, len(self.met) % len(query.candidates)] = 1.0
            return scores

        return predict


def met(out, *, seed=0, order="shuffled", stop=False):
    """Seeds of the test examples in the order in which an online method meets them, and the records."""
    task = tiny_stream().tasks[0]
    query = tiny_stream().query(task, after=0)
    runtime = Runtime(device="cpu", out=out, quiet=True, seed=seed)
    runtime.stop_requested = stop
    method = Online(Config())
    settings = Evaluation(batch_size=1, order=order)
    with contextlib.suppress(Interrupted):
        evaluate(method, method.predictor(query), task, query, settings, runtime=runtime, after=0)
    return method.met, [] if stop else read_records(out / "predictions" / "0_0.jsonl")


def test_an_online_method_meets_test_examples_in_an_order_that_hangs_on_the_seed(tmp_path):
    in_order = [example_seed(0, example.id) for example in tiny_stream().tasks[0].test]
    assert met(tmp_path / "dataset", order="dataset")[0] == in_order
    whole, records = met(tmp_path / "whole")
    assert whole != in_order and sorted(whole) == sorted(in_order)
    met(tmp_path / "again", stop=True)
    assert met(tmp_path / "again") == (whole, records), "after a stop the pass begins again, in the same order"
    assert met(tmp_path / "other", seed=1)[0] != [example_seed(1, e.id) for e in tiny_stream().tasks[0].test]
    assert [r["id"] for r in records] == [e.id for e in tiny_stream().tasks[0].test]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def start(out, epochs, dropout=0.1):
    command = [sys.executable, "-m", "tests.toy_run", str(out), str(epochs), str(dropout)]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bytes_of_one_never_stopped(tmp_path):
    began = time.monotonic()
    whole = start(tmp_path / "whole", 250)
    assert whole.stdout.readline() == "started\n"
    learning = time.monotonic()
    assert whole.wait(120) == 0
    lasted = time.monotonic() - learning
    assert began < learning
    kills, moments = 0, random.Random(7)
    for _ in range(12):
        process = start(tmp_path / "killed", 250)
        assert process.stdout.readline() == "started\n"
        try:
            process.wait(moments.uniform(0.1, 0.5) * lasted if kills < 4 else 120)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills >= 2
    for name in ["scores.json", *(f"predictions/{a}_{b}.jsonl" for a in range(3) for b in range(a + 1))]:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(tmp_path):
    """Without dropout: a layer that draws for its batch draws otherwise when the batch is cut in two."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "tests.toy_run", str(tmp_path / "two"), "5", "0"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    # A thread that outlives its group may abort the process at its end.
    assert set(re.findall(r"threads left: (\d+)", done.stdout)) <= {"0", "1"} and "threads left" in done.stdout
    assert start(tmp_path / "one", 5, 0).wait(120) == 0
    one, two = ((tmp_path / n / "scores.json").read_text() for n in ("one", "two"))
    assert one == two
    for name in ("0_0", "2_0", "2_2"):
        pair = [read_records(tmp_path / n / "predictions" / f"{name}.jsonl") for n in ("one", "two")]
        assert [r["id"] for r in pair[0]] == [r["id"] for r in pair[1]]
        assert [r["confidence"] for r in pair[0]] == pytest.approx([r["confidence"] for r in pair[1]], abs=1e-5)
