"""Tables of methods and test sets, as papers print them."""

from __future__ import annotations

import csv
import io
import json

import pytest

from perdure.reporting import by_set, figures, load, report, tables
from perdure.reporting.published import published


def run_of(folder, sets, *, method="tda", seed=0, metric="accuracy", expect=(), train=False):
    """A run's folder: {set: value} after a test each, nothing learned."""
    folder.mkdir(parents=True)
    values = list(sets.values())
    rows = [{"after": i, "asked": i, "n": 10, "values": {metric: v, "ece": 5.0 + seed}} for i, v in enumerate(values)]
    (folder / "scores.json").write_text(json.dumps({"tasks": list(sets), "headline": metric, "rows": rows}))
    parts = {"test": {"count": 10}} | ({"train": {"count": 1}} if train else {})
    card = {"card": 1, "method": method, "stream": {"tasks": [{"name": name, **parts} for name in sets]}}
    (folder / "card.json").write_text(json.dumps(card))
    recipe = {"method": {"name": method}, "run": {"seed": seed}, "expect": list(expect)}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    events = [
        {"event": "task", "time": 0, "task": i, "learn_seconds": 1e-6, "test_seconds": 5} for i in range(len(sets))
    ]
    events += [
        {"event": "test", "time": 0, "task": i, "after": i, "asked": i, "n": 10, "seconds": 0.5, "peak_bytes": 2e9}
        for i in range(len(sets))
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


OOD = {"I": 70.0, "A": 50.0, "V": 60.0, "R": 70.0, "K": 40.0}


def groups_of(*folders):
    return tables.groups([load.read(folder) for folder in folders])


def cells(wide, label):
    (found,) = [numbers for name, numbers in wide.lines if name == label]
    return dict(zip(wide.columns, found))


def test_means_are_of_sets_seed_by_seed(tmp_path):
    runs = [run_of(tmp_path / f"s{seed}", {n: v + seed for n, v in OOD.items()}, seed=seed) for seed in range(3)]
    runs.append(run_of(tmp_path / "other", OOD, method="tent"))
    accuracy, ece, time, memory = by_set.tables(groups_of(*runs))
    assert [w.metric for w in (accuracy, ece, time, memory)] == ["accuracy", "ece", "ms_an_image", "peak_gigabytes"]
    found = cells(accuracy, "tda")
    assert list(found) == [*OOD, "mean over sets", "OOD mean"]
    assert found["OOD mean"].mean == 56 and found["OOD mean"].spread == 1 and found["OOD mean"].n == 3
    assert found["mean over sets"].mean == pytest.approx(59) and cells(time, "tent")["A"].mean == 50
    assert cells(memory, "tda")["K"].mean == 2 and cells(accuracy, "tent")["A"].n == 1


def test_severities_are_drawn_together_and_errors_are_of_accuracy(tmp_path):
    sets = {"C fog 1": 80.0, "C fog 5": 60.0, "C snow 1": 50.0, "C snow 5": 30.0}
    accuracy, ece, *_ = by_set.tables(groups_of(run_of(tmp_path / "c", sets)))
    found = cells(accuracy, "tda")
    assert {name: one.mean for name, one in found.items()} == {
        "fog": 70,
        "snow": 40,
        "mean over sets": 55,
        "mean corruption error": 45,
    }
    assert "mean corruption error" not in ece.columns


def test_ten_sets_have_their_mean_and_a_set_that_is_missing_has_none(tmp_path):
    ten = dict.fromkeys(by_set.TEN, 50.0)
    whole = run_of(tmp_path / "a", ten)
    part = run_of(tmp_path / "b", {"DTD": 40.0, "Pets": 60.0}, method="zero")
    (accuracy, *_) = by_set.tables(groups_of(whole, part))
    assert cells(accuracy, "tda")["mean of ten sets"].mean == 50
    assert cells(accuracy, "zero")["mean of ten sets"] is None and cells(accuracy, "zero")["Cars"] is None


def test_the_report_holds_them_in_four_forms_with_the_spread_asked_for(tmp_path):
    runs = [run_of(tmp_path / f"s{seed}", {n: v + seed for n, v in OOD.items()}, seed=seed) for seed in range(3)]
    paths = report(runs, tmp_path / "out", spread="sd")
    text = paths["report.md"].read_text()
    assert "|tda|71.00 ± 1.00|" in text and "mean over sets (accuracy)" in text and "when learned" not in text
    page = paths["report.html"].read_text()
    assert "Accuracy (% ↑) by test set" in page and '<td class="n">71.00 ± 1.00</td>' in page
    rows = list(csv.DictReader(io.StringIO(paths["sets.csv"].read_text())))
    (one,) = [r for r in rows if r["metric"] == "accuracy" and r["set"] == "OOD mean"]
    assert float(one["mean"]) == 56 and float(one["sd"]) == 1 and one["n"] == "3"
    assert float(one["ci"]) == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    tex = paths["sets.tex"].read_text()
    assert r"tda & 71.00 $\pm$ 1.00" in tex and r"\begin{tabular}{lrrrrrrr}" in tex
    narrow = report(runs, tmp_path / "out", spread="ci")["report.md"].read_text()
    assert "|tda|71.00 ± 2.48|" in narrow


def test_no_figure_shows_the_time_of_learning_nothing_or_of_one_test(tmp_path):
    figure = figures.seconds_per_task(groups_of(run_of(tmp_path / "a", OOD)))
    assert figure and {row[0] for row in figure.rows} == {"test"}
    assert figures.seconds_per_task(groups_of(run_of(tmp_path / "b", {"A": 50.0}))) is None


def test_runs_that_have_learned_have_no_such_table_and_keep_their_words(tmp_path):
    learned = groups_of(run_of(tmp_path / "a", OOD, train=True))
    assert by_set.tables(learned) == []
    assert "accuracy when learned" in [number.title for number in learned[0].summaries]


def test_a_published_number_is_beside_the_mean_over_sets(tmp_path):
    expect = [{"metric": "when_learned", "value": 57.5, "source": "README"}]
    (group,) = groups_of(run_of(tmp_path / "a", OOD, expect=expect))
    (found,) = published(group)
    assert found.number.aggregate == "over_sets" and found.difference == pytest.approx(0.5)
