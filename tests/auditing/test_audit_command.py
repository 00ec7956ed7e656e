"""`perdure audit`: exit codes, what it prints and writes, and what it refuses."""

import json
import shutil

import pytest

from perdure.cli import main


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    captured = capsys.readouterr()
    return left.value.code, captured.out, captured.err


def test_a_run_without_leaks_passes_in_80_columns(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = said(capsys, "audit", runs)
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines() if str(runs) not in line)
    written = json.loads((runs / "seed_0" / "audit.json").read_text())["findings"]
    assert len(written) == 12
    assert all(each["done"] and each["seen"] for each in written)
    assert all(" ".join(each["check"].split()) in " ".join(out.split()) for each in written)


def test_a_leak_is_exit_code_1_and_json_holds_all(runs, capsys):
    shutil.rmtree(runs / "seed_1" / "predictions")
    shutil.copytree(runs / "seed_0" / "predictions", runs / "seed_1" / "predictions")
    code, out, _ = said(capsys, "audit", runs / "seed_1", "--examples", 8, "--json")
    assert code == 1
    verdicts = {each["check"]: each["verdict"] for each in json.loads(out)}
    assert [check for check, verdict in verdicts.items() if verdict == "leaks"] == [
        "runs with other seeds are other runs"
    ]
    assert not (runs / "seed_0" / "audit.json").exists()


HOSTILE = {
    "no folder": lambda runs: runs / "nowhere",
    "an empty folder": lambda runs: (runs / "empty").mkdir() or runs / "empty",
    "a file": lambda runs: runs / "seed_0" / "card.json",
    "nothing learned": lambda runs: shutil.rmtree(runs / "seed_0" / "checkpoint") or runs / "seed_0",
    "a card of something else": lambda runs: (runs / "seed_0" / "card.json").write_text("[1]") and runs,
    "data that are gone": lambda runs: moved(runs / "seed_0"),
}


def moved(run):
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("name: digits", "name: image_folder\n    root: /nowhere"))
    return run


@pytest.mark.parametrize("case", HOSTILE, ids=lambda name: name.replace(" ", "_"))
def test_what_is_no_run_gets_one_message(case, runs, capsys):
    code, out, err = said(capsys, "audit", HOSTILE[case](runs))
    assert code == 2
    assert out == ""
    assert err.strip()
    assert "Traceback" not in err
    assert not (runs / "seed_0" / "audit.json").exists()
