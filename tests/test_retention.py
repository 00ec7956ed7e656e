"""Sets that a stream does not teach: asked before the first task and after each, refused where a method cannot know."""

import json

import pytest

import perdure
from perdure.errors import RecipeError
from perdure.settings import registry
from tests.every_method import METHODS

SMALL = ["stream.step=20", "stream.train_per_class=2", "stream.data.test_per_class=1", "method.epochs=1"]
SETS = "evaluate.retention=[{name: microworld, content: colors, test_per_class: 5, train_per_class: 0}]"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    out = tmp_path_factory.mktemp("retention")
    return perdure.run("finetune/microworld", [*SMALL, SETS, f"run.out={out}", "run.seeds=[0]"], quiet=True)


def test_a_set_is_asked_before_the_first_task_and_after_each(tuned):
    rows = json.loads((tuned.folder / "scores.json").read_text())["retention"]
    assert [(row["after"], row["set"], row["n"]) for row in rows] == [(t, "microworld-colors", 40) for t in (-1, 0, 1)]
    assert rows[0]["accuracy"] > 50  # known before: chance is 12.5


def test_the_report_says_what_is_kept_and_lost(tuned):
    page = perdure.report(tuned.folder)["report.md"].read_text()
    rows = json.loads((tuned.folder / "scores.json").read_text())["retention"]
    lost = rows[0]["accuracy"] - rows[-1]["accuracy"]
    assert f"|points lost on microworld-colors|↓|{lost:.2f}|" in page
    assert "What it knew before and was not taught" in (tuned.folder / "report.html").read_text()


def test_a_resumed_run_keeps_what_was_asked(tuned, tmp_path):
    import shutil

    folder = tmp_path / "again"
    shutil.copytree(tuned.folder, folder)
    whole = json.loads((folder / "scores.json").read_text())
    (folder / "card.json").unlink()
    again = perdure.run(str(folder / "recipe.yaml"), [f"run.out={tmp_path}", "run.name=again"], quiet=True)
    assert json.loads((again.folder / "scores.json").read_text())["retention"] == whole["retention"]


@pytest.mark.parametrize(
    ("recipe", "sets", "said"),
    [
        ("prototype/microworld", SETS, "answers only for classes that it has learned: it reads no names of classes"),
        ("er/digits", SETS, "answers only for classes that it has learned"),
        ("finetune/microworld", "evaluate.retention=[{name: microworld, content: captions}]", "is of kind caption"),
        ("finetune/microworld", f"{SETS[:-1]}, {SETS[20:]}", "two sets are called microworld-colors"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_weights_load(recipe, sets, said, tmp_path, monkeypatch):
    monkeypatch.setattr(perdure.recipe, "build_method", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(RecipeError, match=said):
        perdure.run(recipe, [sets, f"run.out={tmp_path}"], quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in METHODS
        if (about := registry.describe("methods", name)).roles == ("clip",)
        and not (about.not_updatable or about.learned_classes_only)
        and METHODS[name].stream.tasks[0].kind == "classify"
    ],
)
def test_methods_with_texts_answer_for_classes_that_they_did_not_learn(name):
    from perdure import retention
    from perdure.evaluate import Evaluation, evaluate, predicting
    from perdure.runtime import Runtime

    tiny = METHODS[name]
    method, runtime = tiny.make(), Runtime(device="cpu", quiet=True)
    for task in tiny.stream:
        method.learn(task, runtime)
    data = registry_data()
    count = sum(len(task.candidates) for task in tiny.stream)
    task = retention.as_task(data, data.test, name="colors", index=9, offset=count, split="test")
    query = retention.query(task)
    with predicting(method, runtime):
        predict = method.predictor(query)
    values, n = evaluate(method, predict, task, query, Evaluation(batch_size=4), runtime=runtime, after=0)
    assert n == 8 and 0 <= values["accuracy"] <= 100


def registry_data():
    from perdure.data import microworld

    return microworld.read(microworld.Config(content="colors", test_per_class=1, train_per_class=0))
