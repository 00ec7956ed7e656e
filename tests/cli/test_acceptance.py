"""What a user is promised, tried as a user would: no network, plain pipes, narrow terminals, wrong input of all sorts.

What is promised elsewhere is tested beside its part: kills and resuming in test_run and test_run_command, exports in
test_predict_and_export, reports that are equal twice in report/test_report, YAML's readings in test_recipe, the blocks
of the pages in docs/test_snippets.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.cli import main
from perdure.cli.demo import table_lines
from perdure.runtime import progress
from perdure.runtime.progress import Progress

GOOD = """stream: {name: class_incremental, data: digits, step: 5, train_per_class: 10, test_per_class: 5}
models: {net: {name: mlp, inputs: 192, hidden: 8}}
method: {name: sgd, epochs: 2}
run: {device: cpu, threads: 1}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "q.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def process(code: str, *arguments: str, cwd, **environment: str) -> subprocess.CompletedProcess[str]:
    keep = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "MPLCONFIGDIR", "XDG_CACHE_HOME", "HF_HOME")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env=keep | environment,
        check=False,
    )


def said(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code and both outputs of a command within this process."""
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    assert isinstance(left.value.code, int)
    return left.value.code, *capsys.readouterr()


NO_NETWORK = """
import os, socket
def refuse(*_, **__):
    os.write(2, b"the network was asked for")
    os._exit(99)
for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, refuse)
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse)
"""


@pytest.mark.slow
def test_the_demo_needs_no_network_and_no_home(tmp_path):
    home = tmp_path / "home"
    home.write_text("a file: nothing can be written below it, by root neither")
    less = 'import perdure.cli.demo as d; d.SMALLER = ("stream.train_per_class=2", "stream.test_per_class=1")\n'
    few = "stream.data=[{name: microworld, style: sketch, train_per_class: 0, test_per_class: 1}]"
    less += f'd.SHIFTED = ("{few}", "stream.limit=6")\n'
    code = f"{NO_NETWORK}{less}from perdure.cli import main; main()"
    done = process(code, "demo", cwd=tmp_path, HOME=str(home))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    table = [line.split() for line in lines if line.startswith(("continual_clip ", "finetune ", "rail ", "ranpac "))]
    assert [len(row) for row in table if row[1][0].isdigit()] == [1 + 8 + 3] * 4
    report = re.search(r"The report, with figures: (\S+)", done.stdout)
    assert report and (tmp_path / report[1]).stat().st_size < 1_000_000
    assert "Before you compare" not in (page := (tmp_path / report[1]).read_text())  # one CLIP, in two roles
    assert "forgot most: " in page
    assert "pictures right that zero_shot had wrong" in (tmp_path / "runs/demo/shifted/report.html").read_text()
    assert len([line for line in lines if line.startswith("  perdure ")]) == 3


@pytest.mark.parametrize("total", [100, 80, 60, 48])
def test_the_demos_table_is_aligned_and_whole_in_any_width(total):
    rows = {"continual_clip": ["100.0"] * 11, "mg_clip": [*(f"{n}.5" for n in range(20, 28)), "1.5", "2.5", "3.5"]}
    head, *lines = table_lines(rows, total=total)
    assert {len(line) for line in (head, *lines)} == {len(head)} and len(head) <= total
    assert head.endswith("task 8 average   last forgetting") and lines[1].split()[-3:] == ["1.5", "2.5", "3.5"]
    assert total < 60 or (" task 1 " in head and " 20.5 " in lines[1])


@pytest.mark.slow
def test_a_run_is_whole_on_a_narrow_plain_ascii_terminal(folder):
    plain = {"NO_COLOR": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb"}
    code = "from perdure.cli import main; main()"
    done = process(code, "run", "q.yaml", cwd=folder, COLUMNS="60", **plain)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).isascii()
    assert not {"\r", "\x1b"} & set(done.stdout + done.stderr)
    page = (folder / "runs" / "q" / "report.md").read_text(encoding="utf-8")
    for row in (line for line in page.splitlines() if line.startswith("|sgd|")):
        assert row.encode("ascii", "backslashreplace").decode() in done.stdout


@pytest.mark.parametrize("seconds_a_step", [0.01, 1.0, 4.0])
def test_ten_thousand_steps_are_at_most_100_kilobytes_of_plain_lines(monkeypatch, capsys, seconds_a_step):
    clock = itertools.count(step=seconds_a_step)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Progress("task 1 train", total=10_000) as bar:
        for _ in range(10_000):
            bar.advance(loss=0.123456789)
    written = capsys.readouterr()
    assert written.out == ""
    assert len(written.err.encode()) <= 100_000
    assert not {"\r", "\x1b"} & set(written.err)
    lines = written.err.splitlines()
    assert len(lines) == pytest.approx(10_000 * seconds_a_step / progress.PLAIN_EVERY, rel=0.1, abs=1)
    assert all(re.fullmatch(r"task 1 train: \d+/10000 loss 0.1235 [\d.]+ it/s, [\d:]+ left", line) for line in lines)


@pytest.mark.slow
def test_a_tracker_that_is_not_installed_is_named_before_anything_is_made(folder):
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'wandb' else find(name, *rest)\n"
        "from perdure.cli import main; main()"
    )
    done = process(code, "run", "q.yaml", "run.trackers=[wandb]", cwd=folder)
    assert done.returncode == 2
    assert done.stderr == "the tracker 'wandb' is not installed. Type: pip install \"perdure[wandb]\"\n"
    assert [path.name for path in folder.iterdir()] == ["q.yaml"]


def test_six_faults_in_a_recipe_are_found_by_one_command(folder, capsys):
    (folder / "six.yaml").write_text(
        "stream: {name: class_incremental, data: digits, step: 5, steps: 2}\n"
        "models: {clip: {name: clp, weights: micro-clip}}\n"
        "method: {name: mg_clip, lr: -1, batch_size: many}\n"
        "evaluate: {plan: sen}\n"
        "run: {seeds: [1, 1]}  # concerns several values at once\n"
    )
    code, out, err = said(capsys, "run", "six.yaml")
    assert (code, out) == (2, "")
    assert [line.split(": ")[0] for line in err.splitlines() if ": error: " in line] == [
        "six.yaml:1:58",
        "six.yaml:2:23",
        "six.yaml:3:29",
        "six.yaml:3:45",
        "six.yaml:4:18",
        "six.yaml:5:14",
    ]
    assert "did you mean `step`?" in err
    assert "did you mean `clip`?" in err
    assert err.count("^") >= 6
    assert err.endswith("6 errors; nothing was run\n")
    assert not (folder / "runs").exists()


# -- wrong input of all sorts ---------------------------------------------------------------------------

SETTINGS = {
    "stream": ("data", "step", "first", "train_per_class", "test_per_class", "order", "order_seed", "scope"),
    "models.net": ("name", "inputs", "hidden", "classes", "seed"),
    "method": ("name", "lr", "epochs", "batch_size", "milestones", "augment"),
    "evaluate": ("plan", "batch_size", "split", "start", "save_predictions"),
    "run": ("name", "seed", "seeds", "device", "precision", "out", "workers", "save_every", "unreadable", "threads"),
}
NEVER_RIGHT = ("{no_such_setting: 1}", "[[{deep: [1]}]]", "!!python/object:os.system x")
SYNTAX = ("{", "]", "[1, 2", "'open", '"\\q"', "&a *b", "*nowhere", "{a: b: c}", "@", "`x`", "%", "a: b", "!tag 1")
NO_SETTING = (
    *("", "=", "==", "=1", "lr", "method", "method.", ".lr=1", "method..lr=1", "method.lr.x=1", "lr=1", "seed=1"),
    *("methodlr=1", "Method.lr=1", "method.LR=1", "method lr=1", "method/lr=1", "+method.lr=1", "~method.lr=1"),
    *("method.lr =1", "nosuch.thing=1", "run.nosuch=1", "models.clip=mlp", "expect=5", "base=nowhere", "base={}"),
    *("stream=[]", "stream=", "method=", "method=no_such_method", "stream=no_such_stream", "models=5", "evaluate=x"),
    *("\x00=1", "method.lr=\x00", "méthode.lr=1", "run.seed=-1", "run.seed=1.5", "run.seed=1e400", "run.seed=.nan"),
    *("run.seeds=[1,1]", "run.device=tpu", "run.name=../up", "run.name=", "run.workers=no", "run.threads=0"),
    *("method.lr=.inf", "method.lr=true", "method.lr=0x", "method.lr='0.1'", "method.epochs=2.5"),
)
DOCUMENTS = (
    *(
        "",
        " ",
        "\t",
        "#",
        "---",
        "...",
        "[]",
        "5",
        "text",
        "null",
        "- a",
        "? a",
        ": a",
        "a",
        "{}",
        "a: b",
        "a:\n\tb: 1",
    ),
    *("--- {}\n--- {}", "%YAML 9.9\n---\na: 1", "stream: x\nstream: x", "[stream, method]", "stream: &a [*a]"),
    *("method: {name: sgd}", "stream: {name: class_incremental}", f"{GOOD}method: sgd\n", f"{GOOD}base: none.yaml\n"),
    *(GOOD.replace(":", ""), GOOD.replace("{", "["), GOOD.replace("sgd", "sdg"), GOOD[:-20], GOOD.replace(" ", "\t")),
    *(
        GOOD.replace("name", "nmae"),
        GOOD.replace("run:", "runs:"),
        GOOD.upper(),
        GOOD + "\x07",
        GOOD + "expect: {}\n",
        GOOD + "evaluate: []\n",
    ),
    *(
        GOOD + "expect: [{metric: x}]\n",
        GOOD + "evaluate: [1]\n",
        GOOD.replace("mlp", "clip"),
        GOOD.replace("net", "n"),
    ),
)


def test_two_hundred_wrong_inputs_are_each_one_message_and_exit_2(folder, capsys):
    names = [f"{section}.{key}" for section, keys in SETTINGS.items() for key in keys]
    tried = [("q.yaml", f"{name}={value}") for name in names for value in NEVER_RIGHT]
    tried += [("q.yaml", f"method.lr={value}") for value in SYNTAX]
    tried += [("q.yaml", override) for override in NO_SETTING]
    for number, text in enumerate(DOCUMENTS):
        (folder / f"{number}.yaml").write_text(text, encoding="utf-8")
        tried.append((f"{number}.yaml", "run.seed=0"))
    assert len(tried) >= 200
    for file, override in tried:
        code, out, err = said(capsys, "check", "--no-data", file, "--", override)
        assert (code, out) == (2, ""), (file, override, code, out, err)
        assert err.strip() and "Traceback" not in err, (file, override, err)
    assert not (folder / "runs").exists()


@given(text=st.text(), override=st.text(max_size=30))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_recipe_or_one_message(folder, capsys, text, override):
    (folder / "any.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    code, _, err = said(capsys, "check", "--no-data", "any.yaml", "--", override)
    assert code == 2  # no such text has a stream and a method
    assert "Traceback" not in err


def test_the_recipe_that_all_those_are_cut_from_is_right(folder, capsys):
    code, out, err = said(capsys, "show", "q.yaml", "--json")
    assert (code, err) == (0, "")
    settings_shown = json.loads(out)["settings"]
    for section, keys in SETTINGS.items():
        assert {f"{section}.{key}" for key in keys} <= set(settings_shown) | {"stream.data"}
