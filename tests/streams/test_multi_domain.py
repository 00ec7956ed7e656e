"""Data sets as tasks: labels count through, MTIL asks among one set's classes, X-TAIL among all."""

import json
import re

import numpy as np
import pytest

import perdure
from perdure.errors import DataError, RecipeError
from perdure.metrics import continual
from perdure.settings.config import Named
from perdure.streams.multi_domain import Config, build


def world(content, **settings):
    return Named(
        place="data",
        name="microworld",
        settings={"content": content, "train_per_class": 2, "test_per_class": 1, "validation_per_class": 0, **settings},
    )


TWO = (world("colors"), world("classes"))


def test_labels_count_through_all_sets_and_mtil_asks_among_one_sets_classes():
    made = build(Config(data=TWO, phrases=("{}", "{}, a drawing")))
    assert [(t.name, t.offset, len(t.candidates)) for t in made] == [("microworld-colors", 0, 8), ("microworld", 8, 40)]
    assert set(made.tasks[1].train.targets) == set(range(8, 48)) and made.tasks[1].candidates[0].endswith(", a drawing")
    query = made.query(made.tasks[1], after=0)
    assert query.offset == 8 and query.candidates == made.tasks[1].candidates and query.task == "microworld"


def test_x_tail_asks_among_the_classes_of_all_sets_from_the_start():
    made = build(Config(data=TWO, task_revealed=False, train_per_class=1))
    query = made.query(made.tasks[0], after=0)
    assert len(query.candidates) == 48 and query.offset == 0 and query.task is None
    assert len(made.tasks[1].train) == 40


def test_a_set_that_is_no_classification_or_comes_twice_is_refused():
    with pytest.raises(RecipeError, match="kind caption"):
        build(Config(data=(TWO[0], Named(place="data", name="microworld", settings={"content": "captions"}))))
    with pytest.raises(RecipeError, match="two data sets are called microworld"):
        build(Config(data=(TWO[1], TWO[1])))
    assert len(build(Config(data=(TWO[1], TWO[1]), names=("a", "b")))) == 2
    with pytest.raises(RecipeError, match=r"needs one \{\}"):
        perdure.check("rail/mtil", ["stream.phrases=[x,x,x,x,x,x,x,x,x,x,x]"])


@pytest.mark.slow
@pytest.mark.parametrize("revealed", ["true", "false"])
def test_rail_keeps_zero_shot_answers_of_sets_that_it_has_not_learned(tmp_path, revealed):
    (tmp_path / "r.yaml").write_text(f"""
stream:
  name: multi_domain
  task_revealed: {revealed}
  data:
    - {{name: microworld, content: colors, train_per_class: 10, test_per_class: 10, validation_per_class: 0}}
    - {{name: microworld, train_per_class: 5, test_per_class: 3, validation_per_class: 0}}
models: {{clip: {{name: clip, weights: micro-clip}}}}
method: {{name: rail, width: 300}}
evaluate: {{plan: all, start: true}}
run: {{out: {tmp_path}}}
""")
    run = perdure.run(str(tmp_path / "r.yaml"), quiet=True)
    found = json.loads((run.folder / "scores.json").read_text())["rows"]
    rows = {(row["after"], row["asked"]): row["values"]["accuracy"] for row in found}
    assert set(rows) == {(t, j) for t in (-1, 0, 1) for j in (0, 1)}
    if revealed == "true":
        assert rows[0, 1] == rows[-1, 1]
    matrix = np.array([[rows[t, j] for j in (0, 1)] for t in (0, 1)])
    page = perdure.report(run.folder)["report.md"].read_text()
    papers = continual.zero_shot_transfer(matrix)
    for name, of in (
        ("Transfer", "accuracy of tasks before they are learned"),
        ("Average", "accuracy over all cells"),
        ("Last", "final accuracy, tasks weighed alike"),
    ):
        assert f"|{name} ({of}) (%)|↑|{papers[name.lower()]:.2f}|" in page
        first, second = papers[f"{name.lower()}_of_tasks"]
        by_set = f"|rail|{'–' if first is None else f'{first:.2f}'}|{second:.2f}|{papers[name.lower()]:.2f}|"
        assert f"### {name} by test set" in page and by_set in page


def test_all_sets_that_are_not_there_are_named_at_once_and_one_root_places_them_all(tmp_path):
    for stated, place in (([], "data"), ([f"stream.root={tmp_path}"], str(tmp_path))):
        with pytest.raises(DataError) as fault:
            perdure.check("rail/xtail", stated)
        said = str(fault.value)
        assert said.startswith("10 of 10 data sets cannot be read")
        assert f"{place}/fgvc_aircraft" in said and f"{place}/mnist" in said and "`stream.root`" in said
    own = ["stream.data=[{name: aircraft, root: mine}, mnist]", "stream.names=[a, b]", f"stream.root={tmp_path}"]
    with pytest.raises(DataError, match=r"mine/variants.txt(.|\n)*" + re.escape(f"{tmp_path}/mnist")):
        perdure.check("rail/xtail", own)
