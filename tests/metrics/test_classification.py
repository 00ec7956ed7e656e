"""Records and metrics of classification."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from perdure import metrics
from perdure.errors import RecipeError, TrainingError
from perdure.metrics import classification
from perdure.types import Example, Query

QUERY = Query(kind="classify", candidates=("cat", "dog", "owl"), offset=10)
EXAMPLES = [Example(id="a", inputs={}, target=10), Example(id="b", inputs={}, target=np.int64(11))]


def test_a_record_names_labels_not_columns():
    found = classification.records(np.array([[0.0, 2.0, 1.0], [0.0, 9.0, 0.0]]), EXAMPLES, QUERY)
    e = np.exp
    assert found[0] == {
        "id": "a",
        "target": 10,
        "predicted": 11,
        "top5": [11, 12, 10],
        "confidence": pytest.approx(e(2) / (e(0) + e(1) + e(2)), abs=1e-9),
        "probabilities": pytest.approx([e(k) / (e(0) + e(1) + e(2)) for k in (2, 1, 0)], rel=1e-5),
        "nll": pytest.approx(np.log(e(0) + e(1) + e(2)), abs=1e-9),
        "brier": pytest.approx(sum(e(2 * k) for k in range(3)) / (1 + e(1) + e(2)) ** 2 - 2 / (1 + e(1) + e(2)) + 1),
        "energy": pytest.approx(np.log(e(0) + e(1) + e(2)), abs=1e-6),
        "logit": 2.0,
    }
    assert json.loads(json.dumps(found)) == found


def test_of_equal_scores_the_lowest_label_wins():
    assert classification.record([1.0, 1.0, 1.0], EXAMPLES[0], QUERY)["top5"] == [10, 11, 12]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_of_any_precision_give_the_records_of_arrays(dtype):
    scores = torch.tensor([[0.0, 2.0, 1.0], [0.0, 9.0, 0.0]], dtype=dtype, requires_grad=True)
    assert classification.records(scores, EXAMPLES, QUERY) == classification.records(
        scores.detach().double().numpy(), EXAMPLES, QUERY
    )


def test_minus_infinity_excludes_a_candidate_and_nan_stops_the_run():
    inf = float("inf")
    assert classification.record([-inf, 0.0, -inf], EXAMPLES[0], QUERY)["confidence"] == 1.0
    for bad in ([[0, 1, 2], [float("nan"), 0, 0]], [[0, 1, 2], [-inf] * 3]):
        with pytest.raises(TrainingError, match="example b"):
            classification.records(bad, EXAMPLES, QUERY)


def test_metrics_count_by_hand():
    seen = [
        {"target": 0, "predicted": 0, "top5": [0, 1, 2, 3, 4]},
        {"target": 0, "predicted": 1, "top5": [1, 0, 2, 3, 4]},
        {"target": 0, "predicted": 0, "top5": [0, 1, 2, 3, 4]},
        {"target": 9, "predicted": 1, "top5": [1, 2, 3, 4, 5]},
    ]
    assert metrics.compute("accuracy", seen) == 50
    assert metrics.compute("top5", seen) == 75
    assert metrics.compute("per_class_accuracy", seen) == pytest.approx({"0": 200 / 3, "9": 0})
    assert metrics.compute("mean_per_class", iter(seen)) == pytest.approx(100 / 3)


def test_no_records_have_no_accuracy():
    assert [metrics.compute(name, []) for name in ("accuracy", "top5", "mean_per_class")] == [None] * 3


def test_records_are_made_by_kind():
    scores = np.eye(3)[:2]
    assert metrics.records("classify", scores, EXAMPLES, QUERY) == classification.records(scores, EXAMPLES, QUERY)


def test_an_unknown_metric_is_refused_with_the_nearest_name():
    with pytest.raises(RecipeError, match=r"`acuracy`.*Did you mean `accuracy`"):
        metrics.compute("acuracy", [])


def test_every_listed_metric_is_a_function_and_says_what_it_is():
    from importlib import import_module

    for name, entry in metrics.METRICS.items():
        assert callable(getattr(import_module(f"perdure.metrics.{entry.module}"), name))
        assert entry.unit and entry.docs and entry.arrow in "↑↓"


def test_the_list_of_metrics_needs_neither_torch_nor_numpy():
    code = "import sys, perdure.metrics; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
