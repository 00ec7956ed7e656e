"""Jobs elsewhere, for real: submitit's processes, a Ray cluster of two nodes, Slurm where it is installed."""

from __future__ import annotations

import subprocess

import pytest

from perdure import api, recipe
from perdure.files.text_files import read_json
from perdure.run_folder import run_files
from perdure.sweeping.conducting import conduct
from perdure.sweeping.executors import Place
from perdure.sweeping.executors.ray import OFF
from tests.sweeping import one_node_slurm, small

pytestmark = pytest.mark.slow


def sessions(folder) -> int:
    return sum(event["event"] == "session" for event in run_files.read_lines(folder / "events.jsonl")[0])


def require_as_if_nothing_had_been(cells, tmp_path) -> None:
    for cell in cells:
        alone = api.execute(recipe.load(cell.recipe, [f"run.out={tmp_path / 'alone'}"]), quiet=True)[0].folder
        assert (alone / "scores.json").read_bytes() == (cell.folder / "scores.json").read_bytes()


LONG = {"stream.step": 1, "method.epochs": 2000, "run.save_every": 0.5}
"""Ten tasks of a second each: most of the run is left when it is first seen under way."""


def under_way(folder) -> bool:
    return (folder / "scores.json").exists() and not (folder / "card.json").exists()


def test_submitit_runs_jobs_and_tells_failures(tmp_path):
    pytest.importorskip("submitit")
    from perdure.sweeping.executors.slurm import Slurm

    plan = small.study(tmp_path, seeds=(0, 1))
    (plan.folder / "small").mkdir(parents=True)
    (plan.folder / "small/seed_1").write_text("a file in a folder's place")
    tally = conduct(plan, Slurm(plan.folder, Place(kind="slurm"), cluster="local"), small.silent)
    first, second = (tally.outcomes[cell.key] for cell in plan.cells)
    assert first.state == "finished" and second.state == "failed" and "seed_1" in second.said
    require_as_if_nothing_had_been(plan.cells[:1], tmp_path)
    assert list((plan.folder / "slurm").glob("*_log.err"))


def test_ray_begins_again_on_another_node_what_a_dead_one_had(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason='needs pip install "perdure[ray]"')
    from ray.cluster_utils import Cluster

    for name in OFF:
        monkeypatch.setenv(name, "0")
    plan = small.study(tmp_path, settings=LONG, seeds=(0, 1))
    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": soon}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        node = cluster.add_node(num_cpus=1)
        killed = []

        def kill(*_):
            if not killed and all(under_way(cell.folder) for cell in plan.cells):
                cluster.remove_node(node, allow_graceful=False)
                killed.append(node)

        tally = conduct(plan, Place(kind="ray", address=cluster.address), kill)
        assert killed and tally.count("finished") == 2
        assert print.__module__ == "builtins"
        assert sorted(sessions(cell.folder) for cell in plan.cells) == [1, 2]
    finally:
        ray.shutdown()
        cluster.shutdown()
    require_as_if_nothing_had_been([cell for cell in plan.cells if sessions(cell.folder) == 2], tmp_path)


LACKING = one_node_slurm.missing()


@pytest.mark.skipif(bool(LACKING), reason=f"Slurm is not installed: {', '.join(LACKING)}")
def test_slurm_puts_a_stopped_job_back_into_the_queue_where_it_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    plan = small.study(tmp_path, settings=LONG, seeds=(0, 1))
    place = Place(kind="slurm", jobs=1, options={"cpus-per-task": "1", "time": "10"})
    last = plan.cells[1]  # whose number in the queue is that of the whole array, too
    told = []

    def stop(*_):
        number = read_json(plan.folder / "slurm/jobs.json")[last.key]
        if not told and under_way(last.folder):  # as --signal=TERM@120 does before a job's time is over
            subprocess.run(["scancel", "--signal=TERM", number], check=True)
            told.append("TERM")
        elif told == ["TERM"] and "PENDING" in asked("squeue", "--jobs", number, "--noheader", "--format", "%T"):
            # It would wait two minutes; within the second it is refused, with what the first start was allowed.
            asked("scontrol", "update", f"JobId={number}", "StartTime=now+5seconds")
            told.append("again")

    with one_node_slurm.cluster(tmp_path / "slurm") as environment:
        for name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, environment[name])
        left = conduct(plan, place, small.silent, leave=True)
        assert not left.outcomes  # they wait in the queue; the same again follows them
        tally = conduct(plan, place, stop)
        jobs = asked("scontrol", "show", "job", "-o")
    assert tally.count("finished") == 2 and told == ["TERM", "again"]
    assert len({number.partition("_")[0] for number in read_json(plan.folder / "slurm/jobs.json").values()}) == 1
    assert "Restarts=1" in jobs and "ArrayTaskThrottle=1" in jobs
    assert sessions(last.folder) == 2 and "resuming" in (last.folder / "log.txt").read_text()
    require_as_if_nothing_had_been([last], tmp_path)


def asked(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
