"""Standard output holds results alone, whatever libraries print; warnings to programmers do not reach users; and of
several processes one says what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from perdure.cli import main
from perdure.errors import DataError, Interrupted

WORK = {
    "run er/digits run.out=new": "perdure.api.execute",
    "predict RUN a.png": "perdure.api.reopen",
    "predict --find dogs a.png": "perdure.cli._find.find",
    "predict --method tpt_prompt --classes a,b a.png": "perdure.cli._adapt.adapt",
    "export RUN out": "perdure.exports.write",
    "check er/digits": "perdure.recipe.checked.Checked.with_data",
    "check er/digits --steps 1": "perdure.testing.trial.first_steps",
    "report RUN": "perdure.reporting.report",
    "score RUN": "perdure.reporting.records.score",
    "data check .": "perdure.prepare.check_images.check_path",
    "data check digits": "perdure.prepare.check_images.check",
    "data make microworld --as imagefolder --out made": "perdure.data.microworld.disk.write",
    "data prepare . frames": "perdure.prepare.audio_visual.prepare_videos",
    "prepare asd train.json --kind question": "perdure.prepare.asd.diversify_file",
    "prepare features --data caption_texts --root train.json --out f.st": "perdure.prepare.captions.write_features",
    "prepare clipscore train.json --images .": "perdure.prepare.captions.score_file",
    "prepare coco-results train.json --out coco": "perdure.prepare.captions.write_coco",
    "demo --out new": "perdure.api.execute",
}
"""Command -> what of it does the work, in which libraries may print."""


@pytest.mark.parametrize(("line", "work"), WORK.items(), ids=list(WORK))
def test_what_libraries_print_while_a_command_works_is_not_on_standard_output(
    line, work, tmp_path, monkeypatch, capsys
):
    def noisy(*_, **__):
        print("NOISE of a library")
        warnings.warn("will change", FutureWarning, stacklevel=1)
        warnings.warn("is old", DeprecationWarning, stacklevel=1)
        raise DataError("worked on")

    monkeypatch.setattr(work, noisy)
    monkeypatch.setattr("perdure.cli.prepare._clip", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "recipe.yaml").write_text("method: er\n")
    (tmp_path / "train.json").write_text('["a dog"]')
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SystemExit) as leaving:
        main(line.split())
    out, err = capsys.readouterr()
    assert leaving.value.code == 2 and err.endswith("worked on\n"), err
    assert "NOISE" not in out and "NOISE of a library" in err
    assert "Warning" not in err


PROCESS = """
import os, sys
os.environ |= {"RANK": sys.argv[1], "WORLD_SIZE": "2", "MASTER_PORT": sys.argv[2]}
from perdure import api
from perdure.cli import main
from perdure.errors import DataError, RecipeError

def fails(*_, **__):
    raise {"bug": ZeroDivisionError, "data": DataError, "recipe": RecipeError, "full": OSError}[sys.argv[3]](
        *((28, "No space left on device", "/x") if sys.argv[3] == "full" else ("what went wrong",))
    )

api.execute = fails
main(["run", "er/digits", "run.out=new"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code", "said"), [("bug", 70, "internal error: Zero"), ("full", 2, "/x: ")])
def test_what_goes_wrong_in_every_process_is_said_once(kind, code, said, tmp_path):
    """Whichever comes first; each would say the same."""
    (tmp_path / "p.py").write_text(PROCESS)
    started = [
        subprocess.Popen(
            [sys.executable, tmp_path / "p.py", str(rank), f"{tmp_path.name}{kind}", kind],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said_by = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [code, code]
    lines = [line for text in said_by for line in text.splitlines() if line]
    assert len(lines) == 1 and said in lines[0], lines
    assert lines[0].startswith("process 1: ") == bool(said_by[1])


def test_a_message_of_one_process_alone_is_said_and_says_whose_it_is(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("perdure.reporting.records.score", lambda *_: (_ for _ in ()).throw(DataError("torn")))
    for expected in ("process 1: torn\n", ""):  # a second process of the same launch says it no more
        with pytest.raises(SystemExit):
            main(["score", "."])
        assert capsys.readouterr().err == expected
    (mark,) = Path(tmp_path).glob("perdure-said-*")
    os.utime(mark, (0, 0))  # of another day
    with pytest.raises(SystemExit):
        main(["score", "."])
    assert capsys.readouterr().err == "process 1: torn\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
@pytest.mark.parametrize("columns", [60, 80])
def test_on_a_terminal_every_command_helps_and_lists_within_its_columns(columns, tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    asked = [
        ["--help"],
        ["run", "--help"],
        ["list"],
        ["list", "recipes", "digits"],
        ["show", "er"],
        ["check", "er/digits"],
    ]
    script = tmp_path / "several.py"
    script.write_text(
        "import sys\nfrom perdure.cli import main\n"
        f"for words in {asked!r}:\n    try:\n        main(words)\n    except SystemExit as end:\n"
        "        print('code', end.code)\n"
    )
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, script], stdout=follower, stderr=follower, cwd=tmp_path, env=environment
    ) as process:
        os.close(follower)
        said = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            said += part
    os.close(leader)
    assert process.returncode == 0
    lines = said.decode().replace("\r", "").split("\n")
    assert [line for line in lines if line.startswith("code")] == ["code 0"] * len(asked), said.decode()[-2000:]
    assert "internal error" not in said.decode() and "Usage: perdure" in said.decode()
    wrapped = [line for line in lines if not line.strip().startswith("perdure ")]  # commands stay whole, to be copied
    assert max(map(len, wrapped)) <= columns, max(wrapped, key=len)


def test_a_stop_says_what_to_type_to_go_on_and_never_again(monkeypatch, capsys, tmp_path):
    def stops(*_, **__):
        raise Interrupted("stopped in task 2 of 5")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("perdure.api.execute", stops)
    with pytest.raises(SystemExit) as leaving:
        main(["run", "er/digits", "run.out=my runs", "--again", "-q"])
    assert leaving.value.code == 130
    said = "stopped in task 2 of 5. To go on: perdure run er/digits 'run.out=my runs' -q\n"
    assert capsys.readouterr().err == said
