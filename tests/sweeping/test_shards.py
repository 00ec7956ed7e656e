"""A test cut into parts and put together: the records of one process, or a refusal."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from perdure import api, recipe, sweeping
from perdure.errors import DataError, RecipeError
from perdure.reporting import load
from perdure.run_folder import run_files
from perdure.sweeping import shards
from perdure.sweeping.conducting import conduct
from perdure.sweeping.study import read_study
from tests.sweeping import small
from tests.tiny_clip import tiny_clip

RECIPE = """stream:
  name: shifted_tests
  data:
    - {{name: digits, size: 16}}
    - {{name: digits, size: 16, split_seed: 1}}
    - {{name: digits, size: 16, split_seed: 2}}
  names: [a, b, c]
  test_per_class: 3
models: {{clip: {{name: clip, weights: {weights}}}}}
method: {method}
evaluate: {{plan: current, batch_size: 7, metrics: [ece]}}
run: {{device: cpu, threads: 1, seed: 5, out: {out}}}
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"), context=32)


def plan(folder, weights, method, count, **settings):
    file = folder / "shifts.yaml"
    file.write_text(RECIPE.format(weights=weights, method=method, out=folder / "runs"))
    found, places = read_study(None, {"recipes": (str(file),), "shards": count, "settings": settings})
    return sweeping.plan(found, places)


@pytest.mark.parametrize(
    ("method", "count"),
    [
        ("{name: zero, template: 'a {}', views: 4}", 4),  # each example by itself, with draws
        ("{name: tda, template: 'a {}'}", 3),  # state within a set
    ],
    ids=["zero", "tda"],
)
def test_the_parts_make_the_files_of_one_process(method, count, weights, tmp_path):
    made = plan(tmp_path, weights, method, count)
    (cell,) = made.cells
    here = small.Here()
    tally = conduct(made, here, small.silent)
    assert len(here.asked) == count and tally.outcomes[cell.key].state == "finished"
    whole = api.execute(recipe.load(cell.recipe, [f"run.out={tmp_path / 'alone'}"]), quiet=True)[0].folder
    names = [f"predictions/{i}_{i}.jsonl" for i in range(3)]
    for name in ("scores.json", "data.json", "tasks.json", *names):
        assert (whole / name).read_bytes() == (cell.folder / name).read_bytes(), name
    cards = [run_files.read_card(folder) for folder in (whole, cell.folder)]
    assert cards[0]["accuracy_matrix"] == cards[1]["accuracy_matrix"] and cards[1]["facts"]["shards"] == count
    assert load.read(cell.folder).only_tests and api.reopen(cell.folder, device="cpu").done == 3
    tests = [e for e in run_files.read_lines(cell.folder / "events.jsonl")[0] if e["event"] == "test"]
    assert [(e["asked"], e["n"]) for e in tests] == [(0, 30), (1, 30), (2, 30)]
    assert not list((made.folder / "shards").iterdir())
    again = small.Here()
    assert conduct(plan(tmp_path, weights, method, count), again, small.silent).count("finished") == 1
    assert not again.asked


@pytest.fixture(scope="module")
def finished_parts(weights, tmp_path_factory):
    made = plan(tmp_path_factory.mktemp("parts"), weights, "{name: zero, template: 'a {}', views: 4}", 2)
    (cell,) = made.cells
    parts = shards.cells(cell, 2)
    for part in parts:
        api.execute(part.recipe, quiet=True)
    return cell, parts


def test_shards_share_out_whole_batches(finished_parts):
    _, parts = finished_parts
    counts = [[row["n"] for row in run_files.read_scores(part.folder)["rows"]] for part in parts]
    assert counts == [[14, 14, 14], [16, 16, 16]]  # of batches of 7: two of them, and two with the rest


@pytest.mark.parametrize("fault", ["missing", "twice", "foreign", "other"])
def test_nothing_is_put_together_that_does_not_fit(finished_parts, fault):
    cell, parts = finished_parts
    file = parts[1].folder / ("card.json" if fault == "other" else "predictions/1_1.jsonl")
    kept = file.read_text()
    lines = kept.splitlines()
    record = json.loads(lines[0]) if fault != "other" else {}
    stranger = json.dumps({**record, "id": "nobody"})
    double = (parts[0].folder / "predictions/1_1.jsonl").read_text().splitlines()[0]
    card = json.loads(kept) if fault == "other" else {}
    changed = {
        "missing": lines[1:],
        "twice": [*lines, double],
        "foreign": [*lines, stranger],
        "other": [json.dumps(card | {"weights": {"clip": {"sha256": "0"}}})],
    }
    said = {"missing": "1 of 30 examples are missing", "twice": "is there twice", "foreign": "nobody is no example"}
    file.write_text("\n".join(changed[fault]) + "\n")
    with pytest.raises(DataError, match=said.get(fault, r"weights\.")):
        shards.merge(cell, parts)
    assert not (cell.folder / "card.json").exists()
    file.write_text(kept)


@pytest.mark.parametrize(
    ("method", "count", "said"),
    [
        ("{name: tda, template: 'a {}', continual: true}", 2, "from test set to test set"),
        ("{name: tda, template: 'a {}'}", 4, "there are 3 sets for 4 shards"),
    ],
)
def test_a_method_whose_state_goes_over_the_cuts_is_refused_before_it_is_loaded(method, count, said, weights, tmp_path):
    with pytest.raises(RecipeError, match=said):
        plan(tmp_path, weights, method, count)


def test_what_learns_in_every_task_and_what_keeps_no_records_is_refused(weights, tmp_path):
    with pytest.raises(RecipeError, match="something to learn in every task"):
        small.study(tmp_path, shards=2)
    with pytest.raises(RecipeError, match=r"save_predictions: is false"):
        plan(tmp_path, weights, "{name: zero, template: 'a {}'}", 2, **{"evaluate.save_predictions": False})


def test_a_shard_is_a_part_of_several(weights, tmp_path):
    made = plan(tmp_path, weights, "{name: zero, template: 'a {}'}", 2)
    for wrong in ("3/2", "0/2", "1/0", "one"):
        with pytest.raises(RecipeError, match="shard"):
            recipe.load(made.cells[0].recipe, [f"evaluate.shard={wrong}"])
    assert replace(made.cells[0].recipe).evaluate.shard == ""
