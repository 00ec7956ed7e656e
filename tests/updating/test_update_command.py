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
