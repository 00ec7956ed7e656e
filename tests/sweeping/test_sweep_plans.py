"""What a study amounts to: its runs, their folders, and all of its faults at once. Nothing is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.cli import main
from perdure.cli._sweep_lines import outlook
from perdure.errors import RecipeError
from perdure.sweeping.executors import Place
from perdure.sweeping.study import Range, read_grid
from tests.sweeping import small

THREE, FOUR, FIVE = [0, 1, 2], [3, 4, 5, 6], [7, 8, 9]


def test_every_combination_has_a_folder_of_its_own_that_its_settings_name(tmp_path):
    plan = small.study(tmp_path, grid={"method.lr": [1e-4, 0.03], "method.epochs": [1, 2]}, seeds=(0, 4))
    assert len(plan.cells) == 8 and len({cell.folder for cell in plan.cells}) == 8
    first = plan.cells[0]
    assert first.folder == tmp_path / "runs/small-sweep/small-epochs=1-lr=0.0001/seed_0"
    assert first.recipe.method.settings == {"lr": 1e-4, "epochs": 1} and first.recipe.seeds == (0,)
    again = small.study(tmp_path, grid={"method.epochs": [2, 1], "method.lr": [0.03, 1e-4]}, seeds=(4, 0))
    assert {cell.folder for cell in again.cells} == {cell.folder for cell in plan.cells}
    assert not (tmp_path / "runs").exists()


def test_a_name_with_other_signs_or_a_long_one_ends_in_a_digest(tmp_path):
    plan = small.study(
        tmp_path, grid={"stream.tasks": [[THREE, FOUR, FIVE], [FIVE, FOUR, THREE]]}, settings={"stream.step": None}
    )
    names = {cell.name for cell in plan.cells}
    assert len(names) == 2 and all(name.startswith("small-tasks=") for name in names)


def test_methods_come_with_their_own_recipes_or_with_their_defaults(tmp_path):
    plan = small.study(tmp_path, methods=("sgd", "si"))
    assert [cell.name for cell in plan.cells] == ["small", "si-small"]
    assert plan.cells[1].recipe.method.settings == {} and plan.cells[0].recipe.method.settings == {"epochs": 1}
    shipped = small.study(tmp_path, recipes=("er/digits",), methods=("er", "derpp"), seeds=(0,))
    assert [cell.name for cell in shipped.cells] == ["er-digits", "derpp-digits"]
    assert shipped.cells[1].recipe.method.settings["epochs"] == 5


def test_a_methods_own_recipe_is_the_one_of_the_same_data_and_models(tmp_path):
    plan = small.study(tmp_path, recipes=("prototype/microworld_vit",), methods=("l2p", "finetune"), seeds=(0,))
    assert [arm.asked for arm in plan.arms] == ["l2p/microworld", "finetune/microworld_vit"]
    assert plan.cells[0].recipe.method.settings["augment"] == "none"
    listed = outlook(plan, Place(), listed=True, measure=False)[-1]
    assert listed.split() == [plan.cells[1].key, plan.arms[1].asked]


def test_grids_are_lists_and_ranges():
    found = read_grid(
        [
            "method.lr=1e-4,3e-4",
            "method.epochs=2",
            "method.name=er",
            "method.momentum=0.1..0.9",
            "models.vit.weights=a,b/c",
        ]
    )
    assert found == {
        "method.lr": [1e-4, 3e-4],
        "method.epochs": [2],
        "method.name": ["er"],
        "method.momentum": "0.1..0.9",
        "models.vit.weights": ["a", "b/c"],
    }
    assert Range(low=1e-4, high=1e-2, whole=False).log and not Range(low=0.1, high=0.9, whole=False).log


FAULTS = {
    "small.yaml --seeds 0,0 --yes": ["--seeds", "0 is given twice"],
    "small.yaml --select test": ["--select: found 'test'", "makes that number too good"],
    "small.yaml --search 3 --grid method.lr=0.1,0.2": ["expected `select` beside it"],
    "small.yaml --grid method.lr=0.1..0.2": ["--grid: method.lr: 0.1..0.2 is a range", "--search N"],
    "small.yaml --grid method.lr=-1,x --grid method.epoch=1 --methods sgd,sdg": [
        "expected a number above 0.0, found -1",
        "expected a number, found 'x'",
        "did you mean `epochs`?",
        "--methods:1:13: error: no method is called `sdg`",
    ],
    "smal.yaml nothing/here": ["no recipe or file `smal.yaml`", "no recipe or file `nothing/here`"],
    "small.yaml --methods mg_clip": ["method `mg_clip` takes no model `net`", "needs a model `clip`"],
    "small.yaml --select validation --grid method.lr=0.1,0.2 --yes": [
        "no validation examples in",
        "Set stream.validation_share",
    ],
    "small.yaml --select first-task --seeds 0,1 --fresh 1,2": ["seed 1 is one of `seeds`"],
    "small.yaml --seeds one": ["--seeds: found 'one'", "0,1,2"],
    "small.yaml --leave --yes": ["--leave: nobody else would run them"],
    "small.yaml --select validation --search 3 --grid method.epochs=1..0 stream.validation_share=0.2": ["is empty"],
    "small.yaml --select validation --search 3 --grid stream.validation_share=0.1..1.5": ["expected a number below 1"],
    "ranpac/microworld --grid models.clip.weights=micro-clip,no/where --yes": [
        "models.clip.weights",
        "weights: no/where is not",
    ],
    "small.yaml --slurm partition=gpu": ["--slurm: has no use here"],
    "small.yaml": ["nobody can be asked", "Add --yes."],
    "status nowhere": ["nowhere: this is not a sweep's folder"],
    "status": ["there is no sweep here"],
}


@pytest.mark.parametrize("given", FAULTS, ids=list(FAULTS))
def test_bad_input_is_told_at_once_and_leaves_nothing(given, tmp_path, monkeypatch, capsys):
    small.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    with pytest.raises(SystemExit) as left:
        main(["sweep", *given.split()])
    said = capsys.readouterr().err
    assert left.value.code == 2 and all(part in said for part in FAULTS[given]), said
    assert [p.name for p in tmp_path.iterdir()] == ["small.yaml"]


def test_a_sweep_yaml_is_the_same_and_its_faults_have_lines(tmp_path, monkeypatch, capsys):
    small.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    file = Path("study.yaml")
    file.write_text("recipes: [small.yaml]\ngrid: {method.lr: [0.1, 0.2]}\nseeds: [0, 1]\n")
    with pytest.raises(SystemExit) as left:
        main(["sweep", "study.yaml", "--seeds", "7", "--dry-run"])
    shown = capsys.readouterr().out
    assert left.value.code == 0 and "small-sweep: 2 runs of small, 0 of them finished" in shown
    assert "small-lr=0.2/seed_7" in shown
    file.write_text("recipes: [small.yaml]\ngrid: {method.lr: [0.1, 0.2]}\nseedz: [0, 1]\nsearch: -3\n")
    with pytest.raises(SystemExit):
        main(["sweep", "study.yaml"])
    said = capsys.readouterr().err
    assert "study.yaml:3:1: error: unknown setting `seedz`" in said and "study.yaml:4:9: error: expected" in said


def test_a_folder_with_a_run_of_other_settings_is_refused_before_anything_begins(tmp_path):
    plan = small.study(tmp_path)
    folder = plan.cells[0].folder
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(small.RECIPE.replace("epochs: 1", "epochs: 9"))
    (folder / "card.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"method\.epochs: was 9, now 1.*another --name"):
        small.study(tmp_path)
