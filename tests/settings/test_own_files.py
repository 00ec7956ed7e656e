"""A method, a data set, a metric in a file of one's own: named by its path, read without being imported, and run."""

import json
import sys

import pytest

from perdure import metrics, recipe
from perdure.api import run
from perdure.errors import RecipeError
from perdure.recipe import resolved
from perdure.settings import registry

METHOD = '''"""Majority: answers the class seen most often.

Needs: nothing.
"""
from dataclasses import dataclass

import torch

from beside import START

@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of majority."""

    bonus: float = 1.0
    """Score of the class."""


class MyMajority:
    Config = Config
    answers = frozenset({"classify"})

    def __init__(self, config):
        self.config, self.counts = config, torch.zeros(1000) + START

    def preprocess(self, example, training):
        return {"label": torch.tensor(example.target)}

    def learn(self, task, runtime):
        for label in task.train.targets:
            self.counts[label] += 1

    def predictor(self, query):
        scores = torch.zeros(len(query.candidates))
        scores[self.counts[: len(query.candidates)].argmax()] = self.config.bonus
        return lambda batch: scores.expand(len(batch["label"]), -1)

    def state_dict(self):
        return {"counts": self.counts}

    def load_state_dict(self, state):
        self.counts = state["counts"]
'''
METRIC = '''"""Misses."""
UNIT = "%"
DIRECTION = "down"


def misses(records):
    """Examples whose highest score is not the target."""
    rows = list(records)
    return 100 * sum(row["predicted"] != row["target"] for row in rows) / len(rows)
'''
RECIPE = """
stream: {name: class_incremental, data: {name: digits, size: 8}, step: 5}
method: {name: ./code/my_majority.py, bonus: 2.0}
evaluate: {metrics: [./code/misses.py]}
run: {out: OUT, device: cpu}
"""


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
    """A recipe beside a folder of code, seen from elsewhere."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_majority.py").write_text(METHOD)
    (tmp_path / "code" / "beside.py").write_text("START = 0\n")
    (tmp_path / "code" / "misses.py").write_text(METRIC)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE.replace("OUT", str(tmp_path / "runs")))
    yield file
    for name in ("beside", *(m for m in sys.modules if m.startswith("perdure_file_"))):
        sys.modules.pop(name, None)


def test_a_recipe_names_a_method_by_its_path_and_nothing_of_it_is_imported(recipe_file):
    asked = recipe.load(recipe_file)
    table = resolved(asked)
    assert table["method.bonus"].value == 2.0 and table["method.bonus"].doc == "Score of the class."
    about = registry.describe("methods", asked.method.name)
    assert about.summary == "Majority: answers the class seen most often." and about.answers == ("classify",)
    assert metrics.metric(asked.evaluate.metrics[0]).direction == "down"
    assert "beside" not in sys.modules


def test_a_wrong_setting_of_it_is_refused_as_one_of_the_shipped(recipe_file):
    with pytest.raises(RecipeError, match=r"(?s)unknown setting `method\.bonnus`.*did you mean `bonus`"):
        recipe.load(recipe_file, ["method.bonnus=1"])


def test_it_runs_under_its_own_name_with_its_own_metric(recipe_file):
    run(recipe_file)
    (folder,) = (recipe_file.parent / "runs" / "mine").glob("seed_*")
    rows = json.loads((folder / "scores.json").read_text())["rows"]
    assert all(row["values"]["misses"] == pytest.approx(100 - row["values"]["accuracy"]) for row in rows)
    from perdure.reporting import load, tables

    found = load.read(folder)
    assert found.method == "my_majority"
    assert {n.direction for n in tables.run_numbers(found) if n.metric == "misses"} == {"down"}
    assert json.loads((folder / "card.json").read_text())["code"].keys() == {"my_majority.py", "misses.py"}
    again = run(folder / "recipe.yaml")
    assert not again[0].fresh, "the run's own recipe names the same files"


def test_a_file_that_is_changed_is_another_module(recipe_file):
    code = recipe_file.parent / "code" / "my_majority.py"
    first = registry.load("methods", str(code))
    code.write_text(METHOD.replace("bonus: float = 1.0", "bonus: float = 3.0"))
    assert (first.Config().bonus, registry.load("methods", str(code)).Config().bonus) == (1.0, 3.0)
    assert registry.settings("methods", str(code))().bonus == 3.0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("method=./gone.py", r"there is no file `\./gone\.py`"),
        ("evaluate.metrics=[acuracy]", "(?s)there is no metric `acuracy`.*Did you mean `accuracy`"),
        ("evaluate.metrics=[./gone.py]", "there is no such file"),
    ],
)
def test_a_path_or_a_metric_that_is_not_there_is_named(recipe_file, override, said):
    with pytest.raises(RecipeError, match=said):
        recipe.load(recipe_file, [override])


def test_a_metric_says_what_is_better(recipe_file):
    file = recipe_file.parent / "code" / "misses.py"
    file.write_text(METRIC.replace('DIRECTION = "down"\n', ""))
    with pytest.raises(RecipeError, match='Expected DIRECTION = "up" or "down"'):
        metrics.metric(str(file))
