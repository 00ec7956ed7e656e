"""`perdure update`, `versions`, `promote` and `rollback`: what they print, and their exit codes."""

import json
import shutil

import pytest

from perdure import api
from perdure.cli import main
from tests.updating import pictures


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    pictures.folder(root / "base", "ant bee cat dog")
    pictures.folder(root / "new", "eel bee", kind=1)
    api.execute(pictures.asked(root / "base", root / "runs"), quiet=True)
    return root


@pytest.fixture
def perdure(made, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(made / "runs" / "mine" / "seed_0", run)

    def call(command, *arguments):
        with pytest.raises(SystemExit) as leaving:
            main([command, str(run), *map(str, arguments)])
        said = capsys.readouterr()
        return leaving.value.code, said.out, said.err

    return call


def test_an_update_that_is_held_exits_3_and_every_command_goes_on_from_there(made, perdure):
    code, out, _ = perdure("update", "--data", made / "new", "--dry-run")
    assert code == 0 and "eel" in out and "a margin of 2 points needs 774 examples a task" in out
    code, out, _ = perdure("update", "--data", made / "new", "--quiet")
    assert code == 3 and "retention" in out and "version 3 stays a candidate (gate: " in out
    code, out, _ = perdure("update", "--data", made / "new", "--quiet", "--promote", "always", "--json")
    found = json.loads(out)
    assert code == 0 and found["promoted"] and found["gate"]["decision"] == "promote" and found["parent"] == 2
    assert perdure("rollback", "--reason", "a test")[:2] == (0, "version 2 is promoted\n")
    assert perdure("promote", 4)[:2] == (0, "version 4 is promoted\n")
    code, out, _ = perdure("versions", "--verify")
    rows = [line.split() for line in out.splitlines()]
    assert (
        code == 0 and rows[0][:3] == ["version", "parent", "time"] and rows[4][0] == "4" and rows[4][-1] == "promoted"
    )
    assert json.loads(perdure("versions", "--json")[1])["history"][-1]["was"] == 2


def test_what_is_wrong_in_the_arguments_is_one_message(made, perdure):
    for arguments, match in (
        ((), "--data: is missing"),
        (("--data", made / "new", "--as", "words"), "--as: is 'words'"),
        (("--data", made / "new", "--rename", "dogs"), "--rename: is 'dogs'"),
        (("--data", made / "nothing"), "no such file or folder"),
        (("--data", made / "new", "--gate", made / "no.yaml"), "no such file"),
        (("--data", made / "new", "--promote", "perhaps"), "promote: is 'perhaps'"),
    ):
        code, out, err = perdure("update", *arguments)
        assert (code, out) == (2, "") and match in err, err
    assert perdure("rollback")[0] == 2 and perdure("promote", 9)[0] == 2


def test_a_candidate_is_judged_again_by_other_rules_without_its_model(made, perdure, tmp_path, monkeypatch):
    (tmp_path / "strict.yaml").write_text("retention: 0\nseconds: 1000\nsize: 10\n")
    code, out, _ = perdure("update", "--data", made / "new", "--gate", tmp_path / "strict.yaml", "--quiet", "--json")
    first = json.loads(out)
    rules = {row["rule"]: row["outcome"] for row in first["gate"]["rules"]}
    assert (
        code == 3
        and (rules["seconds"], rules["size"]) == ("passed", "passed")
        and min(first["gate"]["cost"]["seconds"]) > 0
    )
    monkeypatch.setattr("perdure.recipe.build_method", lambda *_: pytest.fail("a model was asked"))
    code, out, _ = perdure("versions", "--regate", tmp_path / "strict.yaml", "--json")
    assert code == 3 and json.loads(out) == {key: first["gate"][key] for key in json.loads(out)}
    wide = "retention: 100\nmean: 100\nlearned: false\nmin_learned: 0\nseconds: 0.000001\n"
    (tmp_path / "wide.yaml").write_text(wide.partition("seconds")[0])
    code, out, _ = perdure("versions", "--regate", tmp_path / "wide.yaml")
    assert code == 0 and "version 3: passed. To use it: perdure promote" in out
    (tmp_path / "slow.yaml").write_text(wide)
    code, out, _ = perdure("versions", "--regate", tmp_path / "slow.yaml")
    assert code == 3 and "times" in out
    (tmp_path / "probe.yaml").write_text("probe: microworld\n")
    code, _, err = perdure("versions", "--regate", tmp_path / "probe.yaml")
    assert code == 2 and "no probe was asked of this version" in err


def test_rows_of_one_group_stay_on_one_side_and_are_judged_together(made, perdure, tmp_path):
    table = tmp_path / "week.csv"
    files = sorted((made / "new").rglob("*.png"))
    rows = [f"{file},{file.parent.name},{int(file.stem) // 2}" for file in files]
    table.write_text("path,label,patient\n" + "\n".join(rows))
    arguments = ("--group", "patient", "task.test_share=0.4", "--quiet", "--json", "--promote", "always")
    code, out, err = perdure("update", "--data", table, *arguments)
    assert code == 0, err
    run = tmp_path / "run"
    records = [json.loads(line) for line in (run / "versions" / "000003" / "predictions" / "2_2.jsonl").open()]
    groups = {record["group"] for record in records}
    assert 0 < len(groups) < 5 and len(records) == 4 * len(groups)  # two pictures of each class a patient
    code, out, _ = perdure("update", "--data", pictures.folder(tmp_path / "later", "gnu", kind=2), "--quiet", "--json")
    row = next(r for r in json.loads(out)["gate"]["rules"] if r["rule"] == "retention" and r["task"] == "week")
    assert row["groups"] == len(groups)
    code, _, err = perdure("update", "--data", table, "--group", "ward")
    assert code == 2 and "there is no column 'ward'" in err
