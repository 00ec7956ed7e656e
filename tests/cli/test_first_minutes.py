"""What a newcomer types first: show, list, report, and the folder that holds a run's seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perdure.cli import main
from perdure.recipe import load
from perdure.reporting import find_runs

RECIPE = """stream: {name: class_incremental, data: digits, step: 2}
models: {clip: {name: clip, weights: micro-clip}}
method: prototype
"""
ROWS = [{"after": 0, "asked": 0, "n": 4, "values": {"accuracy": 75.0}}]


@pytest.fixture
def said(capsys, monkeypatch, tmp_path):
    """Exit code, standard output and standard error of a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main(list(arguments))
        return int(leaving.value.code or 0), *capsys.readouterr()

    return run


def a_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "scores.json").write_text(json.dumps({"tasks": ["a", "b"], "headline": "accuracy", "rows": ROWS}))
    return folder


def test_show_begins_with_what_the_recipe_says_of_itself(said):
    code, out, _ = said("show", "sefe/microworld")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("SEFE on microworld's eight instruction tasks")
    assert any(line.startswith("Make the data first: perdure data make microworld --as coin") for line in lines[:8])
    assert said("show", "sefe/microworld", "--yaml")[1].splitlines()[2].startswith("# Make the data first: perdure")
    assert json.loads(said("show", "sefe/microworld", "--json")[1])["heading"][0] == lines[0]


def test_a_recipe_on_a_base_without_words_of_its_own_says_its_base_s(said):
    Path("mine.yaml").write_text("base: er/digits\nrun: {seed: 1}\n")
    assert load("mine.yaml").heading == load("er/digits").heading
    Path("mine.yaml").write_text("# Mine.\nbase: er/digits\n")
    assert load("mine.yaml").heading == ("Mine.",)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("image_folder", ("data set image_folder:", "root", "(required)", "test_share", "0.2")),
        ("er", ("method er:", "takes models: net", "buffer_size", "200")),
        ("domain", ("stream domain:",)),
        ("resnet18", ("model resnet18:", "width")),
    ],
)
def test_show_knows_one_thing_without_a_recipe(said, name, words):
    code, out, _ = said("show", name)
    assert code == 0
    assert [word for word in words if word not in out] == []
    assert said("show", name, "--json")[1].startswith("{")


@pytest.mark.parametrize("recipe", ["sefe/microworld", "php/microworld"])
def test_missing_files_of_a_written_world_say_how_it_is_made(said, recipe):
    code, _, err = said("check", recipe)
    assert code == 2
    assert "there is no such file" in err
    assert "perdure data make microworld --as" in err


def test_runs_are_listed_with_how_far_they_have_come(said):
    a_run(Path("runs/x/seed_0"))
    a_run(Path("elsewhere/y/seed_1"))
    code, out, _ = said("list", "runs")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["elsewhere/y/seed_1", "runs/x/seed_0"]
    assert "1 of 2 tasks" in out and "75.00 (4 examples)" in out
    assert [row["name"] for row in json.loads(said("list", "runs", "/x/", "--json")[1])] == ["runs/x/seed_0"]


def test_the_folder_above_one_seed_stands_for_it_and_above_several_names_them(said):
    a_run(Path("runs/x/seed_0"))
    code, out, _ = said("show", "runs/x")
    assert (code, "1 of 2 tasks" in out) == (0, True)
    for command in (("score", "runs/x"), ("predict", "runs/x", "a.png"), ("export", "runs/x", "out")):
        assert "seed_0" in said(*command)[2]  # it has neither predictions nor a checkpoint, which they say of that run
    a_run(Path("runs/x/seed_1"))
    for command in (("show", "runs/x"), ("score", "runs/x"), ("predict", "runs/x", "a.png"), ("export", "runs/x", "o")):
        code, _, err = said(*command)
        assert code == 2
        assert "runs/x: 2 runs lie here" in err and "runs/x/seed_0, runs/x/seed_1" in err


def test_a_report_searches_below_and_ignores_files(tmp_path):
    deep = [a_run(tmp_path / "demo" / name / "seed_0") for name in ("a", "b")]
    (tmp_path / "demo" / "report.html").write_text("an earlier report")
    assert find_runs([tmp_path]) == deep
    assert find_runs(sorted((tmp_path / "demo").iterdir())) == deep
    assert find_runs([tmp_path / "demo" / "report.html"]) == [tmp_path / "demo" / "report.html"]  # for it to refuse


@pytest.mark.parametrize(
    "overrides",
    [
        ("stream.data=image_folder", "stream.data.root=x"),
        ("stream.data.root=x", "stream.data=image_folder"),
        ("stream.data.name=image_folder", "stream.data.root=x"),
    ],
)
def test_a_thing_and_its_settings_are_given_in_any_order(overrides):
    data = load("mg_clip/microworld", overrides).stream.settings["data"]
    assert data == {"name": "image_folder", "root": "x"}


def test_check_names_the_classes_of_each_task(said):
    code, out, _ = said("check", "er/digits", "stream.step=4", "stream.uneven=true")
    assert code == 0
    assert [line.split("  ")[-1].strip() for line in out.splitlines()[2:5]] == [
        "classes 0-3: 0, 1, 2, 3",
        "classes 4-7: 4, 5, 6, 7",
        "classes 8-9: 8, 9",
    ]


@pytest.mark.parametrize("template", ["hello", "a {} and a {}", "a {name}"])
def test_check_refuses_a_template_without_one_place_for_the_name(said, template):
    for recipe in ("mg_clip/microworld", "zero_shot/microworld", "tpt_encoder/microworld"):
        code, _, err = said("check", recipe, "--no-data", f"method.template={template!r}")
        assert (code, "expected one {} where the name goes" in err) == (2, True)
