"""Every recipe of a network from scratch on an embedded world runs to its end, cut short by its settings."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from perdure.cli import main
from tests.recipes.shipped import NAMES, load

NETS = {"mlp", "resnet18", "gated_resnet"}
WORLDS = ("digits", "microworld")
SHORT = ("stream.train_per_class=4", "stream.test_per_class=2", "run.seeds=[0]", "run.device=cpu", "run.threads=1")
WARM_UP = {"dynamos": ["method.warmup=1"], "dynamos_sgd": ["method.warmup=1"]}
"""Within the few steps, so that gates are trained, too."""


def of_an_embedded_world(name: str) -> bool:
    if not name.endswith(WORLDS):
        return False
    models = {model.name for model in load(name).models.values()}
    return bool(models) and models <= NETS


RECIPES = [name for name in NAMES if of_an_embedded_world(name)]


def test_both_worlds_come_in_every_form_of_stream():
    forms = {world: set() for world in WORLDS}
    for name in RECIPES:
        loaded = load(name)
        forms["microworld" if name.endswith("microworld") else "digits"].add(loaded.stream.name)
    without_boundaries_or_turned = {"general", "mnist360", "permuted", "rotated"}
    assert forms["microworld"] >= without_boundaries_or_turned
    assert forms["digits"] >= without_boundaries_or_turned | {"class_incremental"}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_it_runs_to_its_end(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    loaded = load(name)
    once = ["method.epochs=1"] if "epochs" in loaded.method.settings else []
    with pytest.raises(SystemExit) as left:
        main(["run", name, "--quiet", *SHORT, *once, *WARM_UP.get(loaded.method.name, [])])
    out, err = capsys.readouterr()
    assert (left.value.code, err) == (0, "")
    assert out.startswith("|method|metric|")
    (folder,) = Path("runs").glob("*/seed_0")
    scores = json.loads((folder / "scores.json").read_text())
    after = [row["after"] for row in scores["rows"]]
    assert max(after) == len(scores["tasks"]) - 1
    assert all(math.isfinite(value) for row in scores["rows"] for value in row["values"].values())
    assert (folder / "card.json").exists() and (folder.parent / "report.html").exists()
