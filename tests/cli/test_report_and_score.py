"""The commands `perdure report` and `perdure score`."""

import json
import subprocess
import sys

import pytest

from perdure.cli import main


def run_folder(folder, seed, value):
    folder.mkdir(parents=True)
    rows = [{"after": 0, "asked": 0, "n": 2, "values": {"accuracy": value}}]
    scores = {"tasks": ["one"], "headline": "accuracy", "rows": rows}
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "recipe.yaml").write_text(f"method: {{name: made_up}}\nrun: {{seed: {seed}}}\n")
    (folder / "predictions").mkdir()
    lines = [{"id": str(i), "target": 0, "predicted": int(100 * i >= value), "top5": [0]} for i in range(2)]
    (folder / "predictions" / "0_0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def perdure(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    return left.value.code, capsys.readouterr()


def test_the_folder_of_a_recipe_stands_for_its_seeds(tmp_path, capsys):
    for seed, value in enumerate((40.0, 50.0, 60.0)):
        run_folder(tmp_path / "recipe" / f"seed_{seed}", seed, value)
    code, said = perdure(capsys, "report", tmp_path / "recipe")
    assert code == 0
    assert "|made_up|final accuracy (%)|↑|50.00|±|24.84|10.00|3|" in said.out
    assert said.out.splitlines()[-4] == str(tmp_path / "recipe" / "report.html")
    assert (tmp_path / "recipe" / "report.html").is_file()


def test_a_report_can_go_elsewhere_and_leave_the_run_as_it_is(tmp_path, capsys):
    run = run_folder(tmp_path / "run", 0, 40.0)
    before = sorted(p.name for p in run.iterdir())
    code, said = perdure(capsys, "report", run, "--out", tmp_path / "there", "--quiet")
    assert code == 0 and len(said.out.splitlines()) == 4
    assert sorted(p.name for p in run.iterdir()) == before


def test_a_report_of_several_lies_apart_from_theirs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [run_folder(tmp_path / name, seed, 40.0 + 10 * seed) for seed, name in enumerate("ab")]
    assert perdure(capsys, "report", runs[0])[0] == 0
    before = {p: p.read_bytes() for run in runs for p in run.rglob("*") if p.is_file()}
    code, said = perdure(capsys, "report", *runs)
    assert code == 0 and "comparison/report.html" in said.out.splitlines()
    assert before == {p: p.read_bytes() for run in runs for p in run.rglob("*") if p.is_file()}
    assert "|45.00|" in (tmp_path / "comparison" / "report.md").read_text()


def test_a_folder_that_is_no_run_ends_with_one_message(tmp_path, capsys):
    code, said = perdure(capsys, "report", tmp_path)
    assert code == 2 and "this is not a run's folder" in said.err and "Traceback" not in said.err


def test_predictions_are_scored_as_a_table_or_as_json(tmp_path, capsys):
    run = run_folder(tmp_path / "run", 0, 100.0)  # records: 0 right, 1 wrong
    code, said = perdure(capsys, "score", run)
    assert code == 0 and said.out.splitlines()[1].split() == ["0", "0", "2", "accuracy", "50.00"]
    code, said = perdure(capsys, "score", run, "--metric", "top5", "--json")
    assert json.loads(said.out)["summary"] == {"final top5": 100.0}


@pytest.mark.parametrize("name", ["report", "score"])
def test_help_has_examples_and_needs_no_torch(name):
    code = (
        "import sys\nfrom perdure.cli import main\n"
        f"try: main(['{name}', '--help'])\nfinally: assert not {{'torch', 'matplotlib', 'numpy'}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"perdure {name} runs/" in done.stdout and len(done.stdout.splitlines()) <= 60


def test_a_report_needs_no_torch(tmp_path):
    run = run_folder(tmp_path / "run", 0, 40.0)
    code = (
        "import sys\nfrom perdure.cli import main\n"
        f"try: main(['report', {str(run)!r}])\nfinally: assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
