"""`perdure run`: from a file to a table; again, changed, stopped and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """# Plain SGD on real digits of 8 x 8 pixels.
stream: {name: class_incremental, data: digits, step: 5, train_per_class: 10, test_per_class: 5}
models: {net: {name: mlp, inputs: 192, hidden: 8}}
method: {name: sgd, epochs: 2}
run: {device: cpu, threads: 1}
"""
COMMAND = [sys.executable, "-m", "perdure", "run", "q.yaml"]
RUN = Path("runs/q/seed_0")
pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "q.yaml").write_text(RECIPE)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False
    )


def test_what_libraries_print_is_no_part_of_the_results(folder, monkeypatch, capsys):
    from perdure import api
    from perdure.cli import main

    execute = api.execute
    monkeypatch.setattr(api, "execute", lambda *args, **how: print("[WARNING] no GPU") or execute(*args, **how))
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit):
        main(["run", "q.yaml", "--quiet"])
    out, err = capsys.readouterr()
    assert out.startswith("|method|metric|") and "[WARNING]" not in out
    assert err == "[WARNING] no GPU\n"


def test_a_list_of_recipes_runs_in_turn_and_shares_its_features(tmp_path, monkeypatch, capsys):
    from perdure.cli import main

    few = ["stream.limit=4", "run.device=cpu", "stream.data=[{name: microworld, style: noise, train_per_class: 0}]"]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        main(["run", "tda/microworld", "adapt/microworld", *few, "--quiet"])
    out = capsys.readouterr().out
    assert not leaving.value.code, out
    assert out.count("The report, with figures") == 2
    assert "All beside each other: perdure report runs/tda-microworld runs/adapt-microworld" in out
    (encoder,) = Path("runs/features").iterdir()
    assert len(list(encoder.glob("*.safetensors"))) == 1, "the second recipe found all features of the first"


def test_of_several_processes_the_first_alone_says_what_is_wrong_with_the_settings(folder, monkeypatch, capsys):
    from perdure.cli import main

    monkeypatch.chdir(folder)
    for rank, says in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as leaving:
            main(["run", "q.yaml", "method.lr=-1"])
        assert leaving.value.code == 2 and ("method.lr" in capsys.readouterr().err) == says


def test_a_run_ends_with_its_table_and_the_next_command_and_a_second_one_trains_nothing(folder):
    first = run(folder)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("|method|metric|")
    page = RUN.parent / "report.html"
    assert first.stdout.endswith(f"The report, with figures: {page}\n")
    assert (folder / page).exists()
    assert "\x1b" not in first.stdout + first.stderr
    assert "\r" not in first.stdout + first.stderr
    card = json.loads((folder / RUN / "card.json").read_text())
    assert (card["method"], card["seeds"]["seed"]) == ("sgd", 0)
    assert card["origins"]["method.epochs"] == "q.yaml:4"
    written = {p: p.stat().st_mtime_ns for p in (folder / RUN).rglob("*")}

    second = run(folder)
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert {p: p.stat().st_mtime_ns for p in (folder / RUN).rglob("*")} == written

    changed = run(folder, "method.lr=0.5")
    assert changed.returncode == 2
    assert "method.lr: was 0.03, now 0.5" in changed.stderr
    assert "--again" in changed.stderr

    anew = run(folder, "method.lr=0.5", "--again")
    assert anew.returncode == 0
    assert json.loads((folder / RUN / "card.json").read_text())["recipe"]["method"]["lr"] == 0.5


def test_ctrl_c_saves_and_the_same_command_ends_as_if_it_had_never_been_stopped(folder):
    longer = "method.epochs=400"
    process = subprocess.Popen(
        [*COMMAND, longer],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    deadline = time.monotonic() + 120
    while not (folder / RUN / "events.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)  # into the first stage
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not (folder / RUN / "card.json").exists()
    stopped = said.splitlines()[-1]
    assert re.match(r"stopped in task \d of \d: .+, step \d+ of \d+\. To go on: perdure run ", stopped)
    assert stopped.endswith(longer), "what was typed, to be typed again"
    assert stopped.partition(". To go on")[0] in (folder / RUN / "log.txt").read_text()

    assert run(folder, longer).returncode == 0
    assert run(folder, longer, "run.name=whole").returncode == 0
    resumed, whole = (folder / "runs" / name / "seed_0" / "scores.json" for name in ("q", "whole"))
    assert resumed.read_bytes() == whole.read_bytes()


def test_each_seed_is_a_run_of_its_own(folder):
    assert run(folder, "run.seeds=[1, 2]").returncode == 0
    there = {path.name: path.is_dir() for path in (folder / "runs" / "q").iterdir()}
    assert [name for name, is_folder in sorted(there.items()) if is_folder] == ["seed_1", "seed_2"]
    assert {"report.html", "report.md", "report.json", "scores.csv"} <= set(there)
    assert "|2|" in (folder / "runs" / "q" / "report.md").read_text()  # n of the mean over seeds


def test_a_notebook_runs_the_same_recipe(folder):
    code = "import perdure; r = perdure.run('q.yaml', method={'lr': 0.5}); print(r._repr_markdown_()[:15])"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout == "|method|metric|\n", done.stderr
    assert "lr: 0.5" in (folder / RUN / "recipe.yaml").read_text()
