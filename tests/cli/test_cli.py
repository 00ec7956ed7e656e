"""The command as a user meets it: help, lists, messages, exit codes; each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from perdure import check as perdure_check
from perdure.cli import commands

MAIN = "from perdure.cli import main; main()"
HEAVY = ("torch", "numpy", "transformers", "matplotlib", "rich", "scipy", "PIL", "sklearn")
GOOD = """# A recipe of one's own.
stream: {name: class_incremental, data: {name: digits, size: 32}, step: 2}
models: {clip: {name: clip, weights: micro-clip}}
method: {name: mg_clip, lr: 1e-3}  # as in the paper
"""


def perdure(*arguments: str, cwd: Path | None = None, code: str = MAIN, **environment: str):
    """The finished process."""
    keep = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env=keep | environment,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my.yaml").write_text(GOOD)
    return tmp_path


def heavy_modules(*arguments: str, cwd: Path) -> tuple[int, list[str]]:
    """Exit code, and which heavy modules a command has imported."""
    code = f"""
import sys
from perdure.cli import main
try:
    main()
except SystemExit as leaving:
    print("CODE", leaving.code, [m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)
"""
    done = perdure(*arguments, cwd=cwd, code=code)
    last = done.stderr.strip().splitlines()[-1]
    found = re.fullmatch(r"CODE (\d+) (\[.*\])", last)
    assert found, done.stderr
    return int(found[1]), json.loads(found[2].replace("'", '"'))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 2),
        (("--help",), 0),
        (("--version",), 0),
        (("list",), 0),
        (("list", "methods", "--json"), 0),
        (("show", "mg_clip/cifar100"), 0),
        (("check", "my.yaml", "--no-data"), 0),
        (("check", "my.yaml", "method.lrr=1"), 2),
        (("check", "--env"), 0),
        (("run", "my.yaml", "method.lrr=1"), 2),
        (("cp", "rapf/cifar100", "copy.yaml"), 0),
        (("data", "list"), 0),
        *(((name, "--help"), 0) for name in commands()),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_trains_nothing_imports_nothing_heavy(folder, arguments, code):
    assert heavy_modules(*arguments, cwd=folder) == (code, [])


def test_importing_the_package_is_light():
    done = perdure(code=f"import sys, perdure; print([m for m in {HEAVY!r} if m in sys.modules], perdure.__version__)")
    assert done.stdout.startswith("[] ")


OFFERED = ("Result", "__version__", "check", "export", "load", "load_recipe", "predict", "report", "run", "update")


def test_what_the_package_offers_is_listed_and_found():
    code = "import perdure; print(*dir(perdure), all(hasattr(perdure, name) for name in dir(perdure)))"
    assert perdure(code=code).stdout.split() == [*OFFERED, "True"]


def test_every_help_is_short_and_has_two_examples():
    top = perdure("--help").stdout
    assert len(top.splitlines()) <= 42
    for name in commands():
        assert f"  {name} " in top
        text = perdure(name, "--help").stdout
        assert len(text.splitlines()) <= 60, name
        assert len(re.findall(rf"^ +perdure {name} ?", text, re.MULTILINE)) >= 2, name


def test_the_list_is_short_and_its_json_is_whole(folder):
    for columns in ("60", "80", ""):
        assert len(perdure("list", COLUMNS=columns).stdout.splitlines()) <= 160
    found = json.loads(perdure("list", "--json").stdout)
    assert {"methods", "recipes", "streams", "data", "models", "metrics"} == set(found)
    mg_clip = next(item for item in found["methods"] if item["name"] == "mg_clip")
    assert mg_clip["roles"] == ["clip"]
    assert mg_clip["answers"] == ["classify"]


def test_a_word_narrows_the_list_and_nothing_found_is_exit_1():
    assert [line.split()[0] for line in perdure("list", "data", "caltech").stdout.splitlines()] == ["caltech101"]
    assert perdure("list", "data", "nosuchword").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("rnu",), "Did you mean 'run'?"),
        (("list", "methds"), "Did you mean `methods`?"),
        (("run", "mg_clip/cifar10"), "Did you mean `mg_clip/cifar100`?"),
        (("run",), "perdure run -h"),
        (("check",), "Type: perdure check RECIPE"),
        (("show", "no.yaml"), "there is no recipe or file `no.yaml`"),
        (("cp", "mg_clip/cifar100", "my.yaml"), "my.yaml: exists already. Overwrite it with --force."),
        (("cp", "mg_clip/cifar100", "my.txt"), "Expected a name that ends in .yaml"),
        (("data", "check", "nowhere"), "nowhere: there is no such file or folder, and no data set of this name"),
        (("data", "check", "clip_folde"), "Did you mean `clip_folder`?"),
        (("data", "check", "digits", "siz=3"), "did you mean `size`?"),
        (("data", "make", "digits", "--as", "imagefolder", "--out", "x"), "digits is not generated"),
        (("data", "make", "microworld"), "--as LAYOUT and --out FOLDER are needed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_input_is_one_message_with_what_to_do_and_exit_2(folder, arguments, expected):
    done = perdure(*arguments, cwd=folder)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_faulty_recipe_is_shown_with_carets_and_makes_no_folder(folder):
    done = perdure("run", "my.yaml", "method.lrr=1", "evaluate.plan=sen", cwd=folder)
    assert done.stderr == (
        "<command line>:1:8: error: unknown setting `method.lrr`\n"
        "  1 | method.lrr=1\n"
        "    |        ^^^ did you mean `lr`?\n"
        "<command line>:2:15: error: expected seen, current, all, last or seen+next, found 'sen'\n"
        "  2 | evaluate.plan=sen\n"
        "    |               ^^^ did you mean `seen`?\n"
        "2 errors; nothing was run\n"
    )
    assert done.returncode == 2
    assert sorted(p.name for p in folder.iterdir()) == ["my.yaml"]


def test_debug_adds_the_traceback_and_keeps_the_exit_code(folder):
    done = perdure("--debug", "check", "my.yaml", "method.lrr=1", cwd=folder)
    assert "Traceback" in done.stderr
    assert done.returncode == 2


def test_a_bug_is_one_line_with_the_path_of_its_trace_and_exit_70(folder):
    code = "import perdure.cli.list as c, perdure.cli as m\n"
    code += "def boom(place, whole): raise ValueError('what no one thought of')\n"
    done = perdure("list", "data", cwd=folder, code=code + "c.entries = boom; m.main()", TMPDIR=str(folder))
    assert done.returncode == 70
    assert re.fullmatch(r"internal error: ValueError: what no one thought of; trace: (\S+)\n", done.stderr)
    trace = next(folder.glob("perdure-trace-*.txt")).read_text()
    assert "in boom" in trace


def test_ctrl_c_is_exit_130(folder):
    code = "import perdure.cli.list as c, perdure.cli as m\ndef stop(place, whole): raise KeyboardInterrupt\n"
    done = perdure("list", "data", cwd=folder, code=code + "c.entries = stop; m.main()")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_show_gives_value_origin_and_meaning_of_each_setting(folder):
    lines = perdure("show", "my.yaml", "method.visual_lr=1", cwd=folder).stdout.splitlines()
    assert any(re.match(r"  lr +0\.001 +my\.yaml:4 +Learning rate", line) for line in lines)
    assert any(re.match(r"  visual_lr +1\.0 +command line +Learning rate", line) for line in lines)
    assert any(re.match(r"  seed +0 +default +All randomness", line) for line in lines)
    shown = json.loads(perdure("show", "my.yaml", "--json", cwd=folder).stdout)
    assert shown["settings"]["method.lr"] == {
        "value": 0.001,
        "origin": "my.yaml:4",
        "doc": shown["settings"]["method.lr"]["doc"],
    }


def test_the_yaml_that_show_writes_is_the_same_recipe(folder):
    (folder / "whole.yaml").write_text(perdure("show", "my.yaml", "--yaml", cwd=folder).stdout)
    assert perdure("show", "whole.yaml", "--yaml", cwd=folder).stdout == (folder / "whole.yaml").read_text()


def test_show_tells_how_far_a_run_has_come(folder):
    run = folder / "runs" / "my" / "seed_0"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(GOOD)
    assert "no task finished" in perdure("show", str(run), cwd=folder).stdout
    rows = [{"after": 0, "asked": 0, "n": 3, "values": {"accuracy": 50.0}}]
    rows += [{"after": 1, "asked": a, "n": n, "values": {"accuracy": v}} for a, n, v in ((0, 3, 40.0), (1, 1, 80.0))]
    (run / "scores.json").write_text(json.dumps({"tasks": ["a", "b", "c"], "headline": "accuracy", "rows": rows}))
    shown = perdure("show", str(run), cwd=folder).stdout
    assert "2 of 3 tasks" in shown
    assert "50.00 (4 examples)" in shown  # (3 * 40 + 1 * 80) / 4
    # tasks of several kinds have a headline each, and one that could not be measured has none
    mixed = [{"after": 0, "asked": i, "n": 2, "values": v} for i, v in enumerate(({"score": 30.0}, {"accuracy": None}))]
    mixed += [{"after": 0, "asked": 2, "n": 3, "values": {"accuracy": 60.0, "top5": 90.0}}]
    (run / "scores.json").write_text(json.dumps({"tasks": ["a", "b", "c"], "headline": "score", "rows": mixed}))
    shown = perdure("show", str(run), cwd=folder).stdout
    assert "30.00 (2 examples)" in shown and "60.00 (3 examples)" in shown and "90.00" not in shown
    (run / "scores.json").write_text("{")
    done = perdure("show", str(run), cwd=folder)
    assert (done.returncode, "scores.json: this is no JSON" in done.stderr) == (2, True)


def test_a_copy_keeps_comments_and_brings_a_schema_that_accepts_it(folder):
    done = perdure("cp", "my.yaml", "copy.yaml", cwd=folder)
    assert done.stdout.splitlines()[-1] == "Run it with: perdure run copy.yaml"
    assert (folder / "copy.yaml").read_text() == "# yaml-language-server: $schema=copy.schema.json\n" + GOOD
    schema = json.loads((folder / "copy.schema.json").read_text())
    method = schema["properties"]["method"]
    assert method["properties"]["lr"]["exclusiveMinimum"] == 0
    assert method["properties"]["lr"]["default"] == 0.001
    assert method["properties"]["lr"]["description"].startswith("Learning rate")
    assert method["additionalProperties"] is False
    assert "cifar100" in schema["properties"]["stream"]["properties"]["data"]["anyOf"][0]["enum"]
    assert perdure("cp", "copy.yaml", "copy.yaml", "--force", cwd=folder).returncode == 0
    assert (folder / "copy.yaml").read_text().count("yaml-language-server") == 1


def test_check_says_what_the_method_sets_itself_and_what_float16_cannot_do(folder):
    said = perdure("check", "mg_clip/digits", "models.clip.weights=micro-clip", cwd=folder).stdout.splitlines()
    assert "auto + " in said[2] and any(line.startswith("auto: the method sets the epochs") for line in said)
    half = ("check", "finetune/microworld", "models.clip.dtype=float16")
    assert perdure(*half, "method.trains=lora", "--no-data", cwd=folder).returncode == 0  # adapters are float32
    done = perdure(*half, "method.trains=all", cwd=folder)
    assert done.returncode == 2 and "epsilon of Adam (1e-8) is 0" in done.stderr


def test_check_lists_the_tasks_and_the_steps_that_the_settings_name(folder):
    done = perdure("check", "my.yaml", "method.epochs=4", "method.batch_size=100", cwd=folder)
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"my: \d+ settings, no fault", lines[0])
    assert lines[1].split() == ["task", "kind", "classes", "train", "validation", "test", "steps", "name"]
    assert [line.split()[0] for line in lines[2:8]] == ["1", "2", "3", "4", "5", "all"]
    # 252 images: 3 batches of 100 in each of 4 epochs, then 4 of 64 in each of 3.
    assert lines[2].split()[:9] == ["1", "classify", "2", "252", "0", "108", "12", "+", "12"]
    assert lines[7].split() == ["all", "10", "1258", "0", "539"]  # the 1,797 digits
    assert lines[8].startswith("steps: epochs (4) x train / 100 + visual_epochs (3) x train / 64")
    assert lines[9] == "1 run: runs/my/seed_0"


def test_check_names_the_steps_of_a_first_session_alone_and_none_where_there_is_none():
    small = {"train_per_class": 48, "test_per_class": 2}
    plain = perdure_check("ranpac/microworld", stream=small)
    assert {str(task["steps"]) for task in plain.tasks} == {"[]"}
    vit = ["models.clip=null", "models.vit={name: vit, weights: micro-vit}", "method.first_session=adapter"]
    session = perdure_check("ranpac/microworld", vit, stream=small)
    first, *others = [task["steps"] for task in session.tasks]
    assert first == [20 * session.tasks[0]["train"] // 48] and others and all(steps == [0] for steps in others)


@pytest.mark.parametrize("recipe", ["mg_clip/cifar100", "er/seq_cifar10_200", "mg_clip/imagenet_r", "sgd/rot_mnist"])
def test_check_names_the_data_that_is_missing_in_one_line_without_torch(folder, recipe):
    done = perdure("check", recipe, cwd=folder)
    assert done.returncode == 2
    assert done.stdout == ""  # not that there is no fault
    assert "data/" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "torch" not in heavy_modules("check", recipe, cwd=folder)[1]


def test_check_names_a_tracker_that_is_not_installed(folder):
    code = "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n: n != 'wandb' and f(n) or None\n" + MAIN
    done = perdure("check", "my.yaml", "run.trackers=[wandb]", cwd=folder, code=code)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "the tracker 'wandb' is not installed. Type: pip install \"perdure[wandb]\"\n"


def test_check_env_knows_versions_memory_and_programs():
    lines = {line.split()[0]: line for line in perdure("check", "--env").stdout.splitlines()}
    assert {"python", "perdure", "torch", "memory", "gpu", "java", "ffmpeg"} <= set(lines)


@pytest.mark.parametrize(
    "arguments", [("--help",), ("list", "methods"), ("show", "mg_clip/cifar100"), ("check", "--env")]
)
def test_narrow_plain_ascii_terminals_lose_nothing(folder, arguments):
    plain = {"NO_COLOR": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "TERM": "dumb"}
    narrow, wide = perdure(*arguments, cwd=folder, COLUMNS="60", **plain), perdure(*arguments, cwd=folder, **plain)
    assert narrow.returncode == wide.returncode == 0
    assert narrow.stdout.isascii()
    assert "\x1b" not in narrow.stdout
    longest = max(map(len, narrow.stdout.split())) + 6  # a path is not broken
    escapes = 5  # an arrow is one column, and six where only ASCII can be written
    assert all(len(s) - escapes * s.count("\\u") <= max(longest, 60) for s in narrow.stdout.splitlines())
    if arguments != ("--help",):
        letters = [sorted(c for c in done.stdout if c.isalpha()) for done in (narrow, wide)]  # free memory changes
        assert letters[0] == letters[1]


def test_a_closed_pipe_is_no_error(folder):
    done = subprocess.run(
        f"{sys.executable} -c '{MAIN}' list data | head -1",
        shell=True,
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.stderr == ""


def completed(words: str, cwd: Path) -> list[str]:
    """What a shell offers at the end of `words`; fails if torch is imported for it."""
    code = """
import sys
sys.argv = ["perdure"]
from perdure.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""
    at = len(words.split()) - (not words.endswith(" "))
    done = perdure(code=code, cwd=cwd, _PERDURE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(at))
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("command", ["run", "show", "check", "cp"])
def test_completion_offers_recipes(folder, command):
    assert "mg_clip/cifar100" in completed(f"perdure {command} ", folder)
    assert completed(f"perdure {command} mg_clip/cif", folder) == ["mg_clip/cifar100"]
    assert completed(f"perdure {command} my", folder) == ["my.yaml"]


@pytest.mark.parametrize("command", ["show", "report", "predict", "export", "score"])
def test_completion_offers_runs(folder, command):
    for run in ("runs/a/seed_0", "runs/a/seed_1", "elsewhere/b/seed_0"):
        (folder / run).mkdir(parents=True)
        (folder / run / "recipe.yaml").write_text(GOOD)
    all_runs = ["elsewhere/b", "elsewhere/b/seed_0", "runs/a", "runs/a/seed_0", "runs/a/seed_1"]
    assert [w for w in completed(f"perdure {command} ", folder) if w.startswith(("runs", "elsewhere"))] == all_runs
    assert completed(f"perdure {command} runs/a/seed", folder) == ["runs/a/seed_0", "runs/a/seed_1"]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("perdure run er/digits method.buffer", ["method.buffer_size="]),
        ("perdure run nosuch/recipe method.", []),
        ("perdure list rec", ["recipes"]),
        ("perdure score x --metric top", ["top5"]),
        ("perdure data check cifar100", ["cifar100"]),
    ],
)
def test_completion_offers_settings_lists_metrics_and_data(folder, typed, offered):
    assert completed(typed, folder) == offered


def test_a_method_without_a_recipe_for_these_data_says_which_one_serves(folder):
    done = perdure("check", "derpp/perm_digits", cwd=folder)
    assert done.returncode == 2
    assert "No recipe of derpp is for perm_digits. Type: perdure run er/perm_digits method.name=derpp" in done.stderr
    assert perdure("check", "er/perm_digits", "method.name=derpp", "--no-data", cwd=folder).returncode == 0


def test_a_generated_world_is_written_and_looked_through(folder):
    given = ("data", "make", "microworld", "--as", "imagefolder", "--out", "w", "train_per_class=1", "test_per_class=1")
    assert perdure(*given, cwd=folder).stdout == "wrote 80 files below w\n"
    done = perdure("data", "check", "w", "--decode", cwd=folder)
    assert done.stdout.splitlines()[-1] == "sound"
    assert done.returncode == 0
