"""Metrics computed again from saved predictions."""

import json

import pytest
from fake_runs import write_run

from perdure.errors import DataError, RecipeError
from perdure.reporting.records import score


def predictions(folder, name, hits):
    lines = [{"id": str(i), "target": i, "predicted": i if hit else -1, "top5": [i]} for i, hit in enumerate(hits)]
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path):
    folder = write_run(tmp_path / "run", matrix=[[100.0, None], [50.0, 75.0]])
    predictions(folder / "predictions", "0_0", [1, 1])
    predictions(folder / "predictions", "1_0", [1, 0])
    predictions(folder / "predictions", "1_1", [1, 1, 1, 0])
    return folder


def test_a_run_is_scored_again_from_its_predictions(run):
    found = score(run)
    assert [(r["after"], r["asked"], r["n"], r["values"]) for r in found["rows"]] == [
        (0, 0, 2, {"accuracy": 100}),
        (1, 0, 2, {"accuracy": 50}),
        (1, 1, 4, {"accuracy": 75}),
    ]
    assert found["summary"]["final accuracy"] == pytest.approx(100 * 4 / 6)  # 1 of 2 and 3 of 4
    assert found["summary"]["final accuracy, tasks weighed alike"] == 62.5
    assert found["summary"]["forgetting"] == 50


def test_other_metrics_can_be_asked_for(run):
    assert score(run, ["top5"])["summary"]["final top5"] == 100
    one = score(run / "predictions" / "1_0.jsonl", ["per_class_accuracy"])["rows"]
    assert one == [{"after": 1, "asked": 0, "n": 2, "values": {"per_class_accuracy": {"0": 100.0, "1": 0.0}}}]


def test_what_cannot_be_scored_is_refused(run, tmp_path):
    with pytest.raises(RecipeError, match="Did you mean `accuracy`"):
        score(run, ["acuracy"])
    file = run / "predictions" / "1_0.jsonl"
    file.write_text('{"id": "a"}\n')
    with pytest.raises(RecipeError, match="no 'target', which `accuracy` needs"):
        score(file)
    file.write_text('{"id": "a"\n')
    with pytest.raises(DataError, match="line 1: this is no JSON"):
        score(file)
    with pytest.raises(DataError, match="no predictions are kept here"):
        score(write_run(tmp_path / "bare", matrix=[[1.0]]))
