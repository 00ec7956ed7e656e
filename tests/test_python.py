"""What Python offers: `run` in every form of a recipe, numbers of a result, and the faces of the commands."""

import builtins
import json
import sys

import numpy as np
import pytest

import perdure
from perdure import recipe
from perdure.cli import main
from perdure.errors import CheckpointError, DataError, MissingExtra, RecipeError

SMALL = {
    "stream": {"name": "class_incremental", "data": "digits", "step": 5, "order": "numeric"},
    "models": {"net": {"name": "mlp", "inputs": 192, "hidden": 16}},
    "method": {"name": "er", "epochs": 1, "buffer_size": 20},
}
"""As a recipe's file would hold it: two tasks of digits."""


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Two seeds of the small recipe."""
    out = tmp_path_factory.mktemp("runs")
    return perdure.run(SMALL, quiet=True, name="small", run={"out": out, "seeds": [0, 1]})


def test_a_name_a_file_a_mapping_and_a_loaded_recipe_state_the_same(tmp_path):
    (tmp_path / "own.yaml").write_text(recipe.to_yaml(recipe.load("er/digits")))
    loaded = perdure.load_recipe("er/digits")
    whole = recipe.to_mapping(loaded)
    for asked in ("er/digits", tmp_path / "own.yaml", whole, loaded):
        again = perdure.check(asked, ["method.lr=0.5"], data=False, name="here", run={"seeds": (3, 4)}).recipe
        assert (again.run.name, again.seeds, again.method.settings["lr"]) == ("here", (3, 4), 0.5)
        assert recipe.to_mapping(again)["stream"] == whole["stream"]


def test_a_loaded_recipe_keeps_where_its_settings_were_stated_when_some_are_changed():
    loaded = perdure.load_recipe("er/digits")
    changed = recipe.load(loaded, ["method.lr=0.5"])
    assert changed.origins["method.lr"] == "command line"
    assert changed.origins["method.epochs"] == loaded.origins["method.epochs"]
    assert changed.heading == loaded.heading
    assert recipe.load(loaded) is loaded


def test_a_mapping_may_have_a_base_and_its_faults_are_shown_as_lines():
    assert recipe.load({"base": "er/digits", "method": {"lr": 0.25}}).method.settings["lr"] == 0.25
    with pytest.raises(RecipeError, match=r"(?s)<mapping>:3:3: .*`method.lrr`.*did you mean `lr`"):
        perdure.run({"base": "er/digits", "method": {"lrr": 1}})


@pytest.mark.parametrize("sections", [{"method": "sgd"}, {"method": {"name": "sgd"}}])
def test_a_section_is_a_name_or_a_mapping(sections):
    assert perdure.check("er/digits", data=False, **sections).recipe.method.name == "sgd"


@pytest.mark.parametrize("given", [{"again_": True}, {"method": {"lr": "much"}}, {"name": "a/b"}, {"run": 3}])
def test_what_is_wrong_in_a_call_is_one_message_before_anything_is_made(given, tmp_path):
    with pytest.raises(RecipeError, match="nothing was run"):
        perdure.run("er/digits", **given)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_quiet_named_and_made_again_when_asked(result, capsys):
    out = result.folder.parent
    assert [one.folder for one in result] == [out / "small" / f"seed_{seed}" for seed in (0, 1)]
    same = perdure.run(SMALL, quiet=True, name="small", run={"out": out, "seeds": [0, 1]})
    assert [one.fresh for one in same] == [False, False]
    again = perdure.run(result[0].folder, again=True, quiet=True)
    assert [one.fresh for one in again] == [True]
    assert again[0].scores.rows == result[0].scores.rows
    assert capsys.readouterr() == ("", "")


def test_the_mean_is_the_average_of_the_table_over_the_seeds(result):
    averages = []
    for one in result:
        cells = {(row["after"], row["asked"]): row for row in one.scores.rows}
        first, seen = [cells[0, 0]], [cells[1, 0], cells[1, 1]]
        steps = [
            sum(r["values"]["accuracy"] * r["n"] for r in rows) / sum(r["n"] for r in rows) for rows in (first, seen)
        ]
        averages.append(sum(steps) / 2)
    assert isinstance(result.mean, float)
    assert result.mean == pytest.approx(sum(averages) / 2, abs=1e-9)
    assert f"{result.mean:.2f}" in str(result)


def test_the_frame_has_a_row_for_each_number_of_each_test_of_each_seed(result):
    frame = result.frame()
    assert list(frame.columns) == ["seed", "after", "asked", "task", "n", "metric", "value"]
    rows = [(seed, row) for seed, one in enumerate(result) for row in one.scores.rows]
    assert len(frame) == sum(len(row["values"]) for _, row in rows)
    for seed, row in rows:
        here = frame[(frame.seed == seed) & (frame.after == row["after"]) & (frame.asked == row["asked"])]
        assert dict(zip(here.metric, here.value)) == row["values"]
        assert set(here.task) == {result[seed].scores.tasks[row["asked"]]}


def test_a_frame_without_pandas_says_what_to_install(result, monkeypatch):
    original = builtins.__import__

    def without(name, *rest):
        if name == "pandas":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"perdure\[frame\]"):
        result.frame()


def test_check_returns_the_tasks_or_raises_what_the_command_says(capsys):
    found = perdure.check(SMALL)
    assert [(t["task"], t["classes"], t["name"]) for t in found.tasks] == [(1, 5, "classes 0-4"), (2, 5, "classes 5-9")]
    assert [t["train"] for t in found.tasks] == [len(task.train) for task in found.stream]
    assert perdure.check(SMALL, data=False).tasks == []
    with pytest.raises(RecipeError) as fault:
        perdure.check("er/digits", ["method.lrr=1"])
    with pytest.raises(SystemExit) as left:
        main(["check", "er/digits", "method.lrr=1"])
    assert left.value.code == 2
    assert str(fault.value) in capsys.readouterr().err


def test_check_says_that_the_run_s_folder_cannot_be(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(RecipeError, match="is no folder"):
        perdure.check(SMALL)


def test_report_writes_what_the_command_writes(result, tmp_path, capsys):
    perdure.load_recipe("er/digits")
    pages = perdure.report(result.folder, out=tmp_path / "ours")
    with pytest.raises(SystemExit):
        main(["report", str(result.folder), "--out", str(tmp_path / "theirs"), "--quiet"])
    assert [tmp_path / "theirs" / name for name in pages] == [*map(type(tmp_path), capsys.readouterr().out.split())]
    assert pages["scores.csv"].read_bytes() == (tmp_path / "theirs" / "scores.csv").read_bytes()
    assert perdure.report([one.folder for one in result], tmp_path / "both")["report.md"].is_file()
    with pytest.raises(DataError):
        perdure.report([])


@pytest.mark.parametrize("first", ["import perdure.reporting, perdure.api", "import perdure"])
def test_report_can_be_called_whatever_was_imported_before(first, tmp_path):
    import subprocess

    code = f"{first}\nprint(callable(perdure.report))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_predict_answers_one_image_several_or_a_folder_as_the_command_does(result, tmp_path, capsys):
    from PIL import Image

    pixels = [np.asarray(example.inputs["image"]) for example in perdure.check(SMALL).stream.tasks[1].test[:2]]
    run, photos = result[0].folder, tmp_path / "photos"
    photos.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image.squeeze()).save(photos / f"{i}.png")
    rows = perdure.predict(run, photos, top=2)
    with pytest.raises(SystemExit):
        main(["predict", str(run), str(photos), "--top", "2", "--json"])
    assert rows == [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(row["answers"]) for row in rows] == [2, 2]
    assert perdure.predict(run, photos / "0.png", top=2) == rows[:1]
    for given in (pixels, [Image.open(photos / f"{i}.png") for i in range(2)]):
        assert [row["answers"] for row in perdure.predict(run, given, top=2)] == [row["answers"] for row in rows]
    assert perdure.predict(run, pixels[0], top=2)[0]["answers"] == rows[0]["answers"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image there"):
        perdure.predict(run, tmp_path / "empty")


def test_export_writes_a_folder_that_predicts_as_the_run_does(result, tmp_path):
    image = np.asarray(perdure.check(SMALL).stream.tasks[0].test[0].inputs["image"])
    lines = perdure.export(result[0].folder, tmp_path / "model")
    assert "perdure.predict" in lines
    assert perdure.predict(tmp_path / "model", image) == perdure.predict(result[0].folder, image)
    with pytest.raises(DataError, match="not empty"):
        perdure.export(result[0].folder, tmp_path / "model")
    perdure.export(result[0].folder, tmp_path / "model", force=True)


def test_a_folder_of_several_seeds_is_not_taken_for_one(result):
    with pytest.raises((CheckpointError, DataError, RecipeError), match="seed_0"):
        perdure.predict(result.folder, "picture.png")
