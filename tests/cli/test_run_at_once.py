"""One folder, several commands at once, and one command in several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """stream: {name: class_incremental, data: digits, step: 5, train_per_class: 10, test_per_class: 5}
models: {net: {name: mlp, inputs: 192, hidden: 8}}
method: {name: sgd, epochs: 60}
run: {device: cpu, threads: 1}
"""
PERDURE = [sys.executable, "-m", "perdure"]
RUN = Path("runs/q/seed_0")
pytestmark = pytest.mark.slow


def perdure(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PERDURE, *arguments], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A run whose first task is finished, held in its second by SIGSTOP."""
    folder = tmp_path_factory.mktemp("running")
    (folder / "q.yaml").write_text(RECIPE)
    process = subprocess.Popen([*PERDURE, "run", "q.yaml"], cwd=folder, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / RUN / "scores.json").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    assert process.poll() is None, "the run was over before it could be looked at"
    yield folder, process
    process.kill()
    process.wait()


@pytest.mark.parametrize("arguments", [(), ("--again", "method.lr=0.5")])
def test_a_second_run_in_the_folder_of_one_under_way_is_refused_and_changes_nothing(running, arguments):
    folder, process = running
    before = {p: p.read_bytes() for p in (folder / RUN).rglob("*") if p.is_file()}
    second = perdure(folder, "run", "q.yaml", *arguments)
    assert second.returncode == 2
    assert f"{RUN}: this folder is in use by process {process.pid} on " in second.stderr
    assert {p: p.read_bytes() for p in (folder / RUN).rglob("*") if p.is_file()} == before


def test_a_run_under_way_can_be_looked_at(running):
    folder, process = running
    shown = perdure(folder, "show", str(RUN))
    assert shown.returncode == 0 and f"process {process.pid} on " in shown.stdout
    assert perdure(folder, "report", str(RUN)).returncode == 0


def test_a_run_that_goes_on_ends_and_leaves_no_lock(running):
    folder, process = running
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert not (folder / RUN / "lock").exists()
    assert perdure(folder, "run", "q.yaml").returncode == 0


def test_again_in_two_processes_makes_the_run_anew_once(tmp_path):
    small = ["continual_clip/microworld", "stream.train_per_class=1", "stream.test_per_class=1", "stream.step=20"]
    command = ["-m", "perdure", "run", *small, "run.name=q", "run.device=cpu", "run.threads=1"]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for arguments in ([], ["--again"]):
        done = subprocess.run([*two, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        events = [json.loads(line) for line in (tmp_path / RUN / "events.jsonl").read_text().splitlines()]
        assert [e["processes"] for e in events if e["event"] == "session"] == [2]
