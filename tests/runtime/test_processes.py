"""Two processes that fit one small network: gradients, the log, signals and saves, as in one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perdure import checkpoint
from perdure.runtime.collectives import _buckets
from tests import processes_run

ROOT = Path(__file__).parents[2]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes left behind."""
    out = tmp_path_factory.mktemp("two")
    command = [sys.executable, *TWO, "-m", "tests.processes_run", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    processes_run.whole(out)
    return out


def result(out, rank=0):
    return checkpoint.load(out / f"rank{rank}.safetensors")


def steps(out):
    """Logged steps, without their time."""
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [e | {"time": 0, "stage": ord(e["stage"])} for e in events if e.pop("event") == "step"]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["whole", "small_buckets"])
def test_two_processes_learn_and_log_what_one_does(alone, two, what):
    """Also where a layer works in one process alone, where a value is named in one alone, and in a last batch of two
    examples, one for each."""
    one, first, second = result(alone), result(two / what), result(two / what, rank=1)
    for name, weight in one["net"].items():
        torch.testing.assert_close(first["net"][name], weight, rtol=1e-5, atol=1e-6)
        assert torch.equal(first["net"][name], second["net"][name])
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for event, other in zip(steps(two / what), steps(alone), strict=True):
        assert event == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["stopped", "stopped_saving"])
def test_a_signal_that_one_process_hears_stops_all_after_the_same_step(two, what):
    said = {(two / what / f"stopped{rank}.txt").read_text() for rank in (0, 1)}
    assert len(said) == 1
    step = int(re.search(r"step (\d+) of 600", said.pop())[1])
    assert 8 <= step <= 10
    saved = checkpoint.load(two / what / "checkpoint" / "task_-001" / "s.safetensors")
    assert saved["step"] == step == len(saved["state"]["history"]["losses"])


def test_buckets_hold_tensors_of_one_type_up_to_their_size():
    tensors = [torch.zeros(n, dtype=d) for n, d in ((3, torch.float32), (8, torch.bfloat16), (2, torch.float32))]
    assert sorted(_buckets(tensors, 1000)) == [[0, 2], [1]]
    assert sorted(_buckets([*tensors, *tensors], 16)) == [[0, 2], [1], [3, 5], [4]]
