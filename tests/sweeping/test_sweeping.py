"""Studies that run, in processes of this machine: to their end, past a failure, after a kill, after a stop, again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from perdure import api, recipe
from perdure.cli import main
from perdure.errors import Interrupted
from perdure.reporting import load
from perdure.run_folder import lock, run_files
from perdure.sweeping import costs, record, searching, tally
from perdure.sweeping.conducting import conduct
from perdure.sweeping.executors import Place
from tests.sweeping import small

pytestmark = pytest.mark.slow
LOCAL = Place(jobs=1)


@pytest.fixture
def here(monkeypatch):
    """Jobs of the command run in this process: to start others costs seconds."""
    monkeypatch.setattr("perdure.sweeping.conducting.make", lambda place, folder: small.Here())


def sweep(folder: Path, *words: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as left:
        main(["sweep", str(folder / "small.yaml"), "--yes", f"run.out={folder / 'runs'}", *words])
    assert left.value.code == code


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two settings and two seeds, finished."""
    folder = tmp_path_factory.mktemp("sweep")
    plan = small.study(folder, grid={"method.lr": [0.01, 0.1]}, seeds=(0, 1))
    return folder, plan, conduct(plan, small.Here(), small.silent)


def test_each_run_is_that_of_perdure_run(finished, tmp_path):
    _, plan, tally = finished
    assert {outcome.state for outcome in tally.outcomes.values()} == {"finished"}
    cell = plan.cells[3]
    alone = api.execute(recipe.load(cell.recipe, [f"run.out={tmp_path}"]), quiet=True)[0].folder
    for name in ("scores.json", "predictions/1_0.jsonl", "predictions/1_1.jsonl"):
        assert (alone / name).read_bytes() == (cell.folder / name).read_bytes()
    card = run_files.read_card(cell.folder)
    assert card["study"] == {
        "sweep": "small-sweep",
        "phase": "grid",
        "select": "none",
        "settings": 2,
        "grid": {"method.lr": [0.01, 0.1]},
    }
    assert card["origins"]["method.lr"] == "command line" and card["origins"]["stream.step"].endswith("small.yaml:1")


def test_the_same_again_trains_nothing_and_other_values_join_in(finished, here, capsys):
    folder, plan, _ = finished
    before = {f: f.read_bytes() for f in plan.folder.rglob("card.json")}
    sweep(folder, "--grid", "method.lr=0.01,0.1", "--seeds", "0,1")
    shown, said = capsys.readouterr()
    assert "4 of them finished" in said and "sgd (lr=0.1)" in shown and "seed_" not in said
    sweep(folder, "--grid", "method.lr=0.2", "--seeds", "0")
    shown, said = capsys.readouterr()
    assert "1 run of small, 0 of them finished" in said and "[1 of 1] small-lr=0.2/seed_0 finished" in said
    assert before.items() <= {f: f.read_bytes() for f in plan.folder.rglob("card.json")}.items()
    assert len(record.read(plan.folder)["cells"]) == 5
    assert record.settings_tried(plan.folder, "small", phase="grid") == 3
    more = small.study(folder, grid={"method.lr": [0.01, 0.1, 0.3]}, seeds=(0, 1))
    found = costs.cost(more, measure=False)
    assert found is not None and found.seconds > 0 and found.disk > 10_000 and "finished runs" in found.basis
    assert costs.cost(small.study(folder, settings={"run.out": str(folder / "other")}), measure=False) is None
    with pytest.raises(SystemExit):
        main(["sweep", "status", str(plan.folder), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [run["state"] for run in told["runs"]] == ["finished"] * 5


def test_a_failure_is_told_and_the_others_go_on(tmp_path, capsys):
    small.write(tmp_path)
    broken = tmp_path / "breaks.py"
    broken.write_text(BREAKS)
    (tmp_path / "small.yaml").write_text(small.RECIPE.replace("name: sgd, epochs: 1", "name: ./breaks.py"))
    sweep(tmp_path, "--grid", "method.how=mend,bug,no", "--seeds", "0", code=1)
    shown, said = capsys.readouterr()
    assert "small-how=mend/seed_0: failed: this can be mended" in shown
    assert "small-how=bug/seed_0: failed: ZeroDivisionError: a fault of ours (see " in shown
    assert "[3 of 3] small-how=_no" in said and "2 of 3 runs did not come to their end" in shown
    assert "breaks" in shown  # the table of what finished
    with pytest.raises(SystemExit):
        main(["sweep", "status", str(tmp_path / "runs/small-sweep")])
    assert "failed" in capsys.readouterr().out


BREAKS = '''"""Breaks as it is told."""

from dataclasses import dataclass

from perdure.errors import TrainingError
from perdure.methods.sgd import Sgd


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings."""

    how: str = "no"
    """How it breaks."""
    epochs: int = 1
    """Epochs."""
    lr: float = 0.1
    """Rate."""
    batch_size: int = 10
    """Examples."""


class Breaks(Sgd):
    Config = Config
    answers = frozenset({"classify"})

    def __init__(self, config, *, net):
        super().__init__(Sgd.Config(epochs=1), net=net)
        self.how = config.how

    def learn(self, task, runtime):
        if self.how == "mend":
            raise TrainingError("this can be mended")
        if self.how == "bug":
            raise ZeroDivisionError("a fault of ours")
        super().learn(task, runtime)
'''


def test_a_killed_process_is_replaced_ctrl_c_saves_and_all_ends_as_if_nothing_had_been(tmp_path, monkeypatch):
    monkeypatch.setattr(tally, "TICK", 0.01)  # a second task is not over between two looks
    plan = small.study(tmp_path, settings={"method.epochs": 100, "run.save_every": 0.5}, seeds=(0, 1))
    first, second = (cell.folder for cell in plan.cells)
    done = []

    def disturb(*_):
        if not done and (first / "scores.json").exists() and not (first / "card.json").exists():
            (worker,) = psutil.Process().children()
            worker.kill()
            done.append("killed")
        elif len(done) == 1 and (second / "scores.json").exists() and not (second / "card.json").exists():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("stopped")

    with pytest.raises(Interrupted, match="stopped: 1 of 2 runs are finished"):
        conduct(plan, LOCAL, disturb)
    assert done == ["killed", "stopped"] and not (second / "lock").exists()
    states = [record.standing(plan.folder, entry).state for entry in record.read(plan.folder)["cells"]]
    assert states == ["finished", "stopped"]
    assert conduct(plan, small.Here(), small.silent).count("finished") == 2
    for cell in plan.cells:
        sessions = [e for e in run_files.read_lines(cell.folder / "events.jsonl")[0] if e["event"] == "session"]
        whole = api.execute(recipe.load(cell.recipe, [f"run.out={tmp_path / 'alone'}"]), quiet=True)[0].folder
        assert len(sessions) == 2
        assert (whole / "scores.json").read_bytes() == (cell.folder / "scores.json").read_bytes()


def test_workers_do_not_outlive_the_sweep(tmp_path):
    small.write(tmp_path)
    command = [sys.executable, "-m", "perdure", "sweep", "small.yaml", "--yes", "method.epochs=2000", "run.seed=0"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    folder = tmp_path / "runs/small-sweep/small/seed_0"
    deadline = time.monotonic() + 120
    while not (folder / "events.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (worker,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    worker.wait(60)
    assert "SIGTERM: saving" in (folder / "log.txt").read_text()


def test_gpus_are_pinned_one_each_and_threads_shared_out(tmp_path):
    from perdure.sweeping.executors.local import Local

    local = Local(tmp_path, Place(jobs=4, gpus=("2", "5")))
    assert [local._environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(4)] == ["2", "5", "2", "5"]
    assert Local(tmp_path, Place(gpus=("0", "1"))).room == 2


def test_a_setting_is_chosen_by_validation_and_run_on_fresh_seeds(tmp_path, here, capsys):
    small.write(tmp_path)
    share = "stream.validation_share=0.3"
    sweep(tmp_path, "--grid", "method.lr=0.001,0.1", "--seeds", "0,1", "--select", "validation", share)
    shown, said = capsys.readouterr()
    place = tmp_path / "runs/small-sweep"
    assert "no test example is asked before" in said
    assert sorted(p.name for p in place.glob("search/*/seed_*")) == ["seed_0", "seed_0", "seed_1", "seed_1"]
    assert sorted(p.name for p in place.glob("chosen/*/seed_*")) == ["seed_2", "seed_3"]
    searched, chosen = (load.read(next(place.glob(f"{phase}/*/seed_*"))) for phase in ("search", "chosen"))
    assert searched.recipe["evaluate"]["split"] == "validation" and chosen.recipe["evaluate"]["split"] == "test"
    values = {c["name"]: c for c in record.read(place)["cells"] if c["phase"] == "search"}
    assert len(values) == 2
    choice = chosen.card["study"]["choice"]
    assert choice["tried"] == 2 and choice["seeds"] == [0, 1] and choice["by"] == "validation"
    assert f"chosen among 2 settings by accuracy {choice['value']:.2f} on validation examples, seeds 0, 1" in shown
    assert "chosen among 2 settings by accuracy" in (place / "chosen/report.md").read_text()


def test_by_the_first_task_alone_runs_end_after_it(tmp_path):
    asked = {"grid": {"method.lr": [0.001, 0.1]}, "seeds": (0,), "select": "first-task"}
    asked["settings"] = {"stream.validation_share": 0.3}
    plan = small.study(tmp_path, **asked)
    tally = conduct(plan, small.Here(), small.silent)
    assert [tally.outcomes[cell.key].state for cell in plan.cells] == ["finished"] * 2
    assert all(not (cell.folder / "card.json").exists() for cell in plan.cells)
    assert [row["after"] for row in run_files.read_scores(plan.cells[0].folder)["rows"]] == [0]
    assert tally.choices[0].by == "first-task" and tally.count("finished") == 3
    again = small.Here()
    assert conduct(small.study(tmp_path, **asked), again, small.silent).count("finished") == 3 and not again.asked


def test_optuna_proposes_ends_trials_between_tasks_and_goes_on(tmp_path):
    optuna = pytest.importorskip("optuna")
    asked = {
        "grid": {"method.lr": "1e-5..0.3", "method.epochs": [1, 2]},
        "seeds": (0, 1),
        "select": "validation",
        "settings": {"stream.validation_share": 0.3},
    }
    first = conduct(small.study(tmp_path, search=2, **asked), small.Here(room=2), small.silent)
    searched = [cell.key for cell in first.cells if cell.phase == "search"]
    assert sorted(searched) == [f"search/small-trial_{i}/seed_{seed}" for i in (0, 1) for seed in (0, 1)]
    assert first.choices[0].tried == 2 and first.choices[0].seeds == (0, 1) and first.count("pruned") == 0

    folder = first.plan.folder
    study = searching._study(folder / "search/small.journal", "small", seeded=True)
    for _ in (2, 3):  # better than any run can be
        trial = study.ask()
        trial.suggest_float("method.lr", 1e-5, 0.3, log=True), trial.suggest_categorical("method.epochs", [0, 1])
        trial.report(101.0, 0)
        study.tell(trial, 101.0)
    under_way = study.ask()  # of a call that was killed: it keeps its number and its setting
    rate = under_way.suggest_float("method.lr", 1e-5, 0.3, log=True)
    second = conduct(small.study(tmp_path, search=6, **asked), small.Here(), small.silent)
    trials = [cell for cell in second.cells if cell.phase == "search"]
    assert next(cell for cell in trials if cell.name == "small-trial_4").settings["method.lr"] == rate
    assert {cell.name for cell in trials if second.outcomes[cell.key].state == "pruned"} == {
        "small-trial_4",
        "small-trial_5",
    }
    assert [row["after"] for row in run_files.read_scores(trials[-1].folder)["rows"]] == [0]
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    assert states.count(optuna.trial.TrialState.PRUNED) == 2 and len(states) == 6
    chosen = [cell for cell in second.cells if cell.phase == "chosen"]
    assert [cell.seed for cell in chosen] == [2, 3]
    choice = run_files.read_card(chosen[0].folder)["study"]["choice"]
    assert (choice["tried"], choice["search"], choice["seeds"]) == (4, True, [0, 1])
    assert second.choices[0].pruned == 2


def test_a_run_at_work_elsewhere_is_left_alone(tmp_path):
    plan = small.study(tmp_path, seeds=(0, 1))
    with lock.held(plan.cells[0].folder):
        tally = conduct(plan, small.Here(), small.silent)
    assert [tally.outcomes[cell.key].state for cell in plan.cells] == ["busy", "finished"]
    assert f"in use by process {os.getpid()}" in tally.outcomes[plan.cells[0].key].said
