"""Merging seeds and comparing methods, by numbers that a reader can follow."""

import json
import math
from dataclasses import replace

import pytest
from fake_runs import falling, write_run

from perdure import loop
from perdure.errors import DataError
from perdure.reporting import load, markdown, tables
from perdure.reporting.published import published
from perdure.runtime import Runtime
from perdure.testing import tiny_stream
from tests.every_method import METHODS


def one_task(folder, accuracy, **more):
    return load.read(write_run(folder, matrix=[[accuracy]], **more))


def test_seeds_merge_into_mean_sample_deviation_and_students_interval(tmp_path):
    runs = [one_task(tmp_path / str(s), value, seed=s) for s, value in enumerate((80.0, 82.0, 84.0))]
    (group,) = tables.groups(runs)
    (number,) = group.summaries
    one = group.summaries[number]
    assert (number.title, one.n, one.mean, one.spread) == ("final accuracy", 3, 82, 2)
    # t(0.975, 2 degrees of freedom) = 4.302653
    assert one.margin == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-6)


def test_two_seeds_have_a_spread_but_no_interval():
    one = tables.summarize([80.0, 82.0])
    assert (one.mean, one.spread, one.low, one.high) == (81, math.sqrt(2), None, None)
    assert tables.summarize([80.0]).spread is None


def test_runs_of_other_settings_are_other_groups_named_by_what_differs(tmp_path):
    runs = [
        one_task(tmp_path / "a", 80.0, seed=0, settings={"lr": 0.1}),
        one_task(tmp_path / "b", 81.0, seed=0, settings={"lr": 0.2}),
        one_task(tmp_path / "c", 82.0, seed=1, settings={"lr": 0.1}),
    ]
    first, second = tables.groups(runs)
    assert (first.label, len(first.runs)) == ("made_up (lr=0.1)", 2)
    assert (second.label, len(second.runs)) == ("made_up (lr=0.2)", 1)
    assert tables.differing([first.runs[0], second.runs[0]]) == {"method.lr": [0.1, 0.2]}


def test_where_a_run_lies_does_not_make_it_another_experiment(tmp_path):
    runs = [one_task(tmp_path / "x" / f"seed_{s}", 80.0, seed=s) for s in range(2)]
    for run, device in zip(runs, ("cpu", "cuda")):
        run.recipe["run"] |= {"name": device, "device": device, "out": device}
        run.recipe["stream"]["root"] = f"/data/{device}"
    assert len(tables.groups(runs)) == 1
    assert runs[0].name == "x/seed_0"


def test_runs_of_unknown_settings_are_not_merged(tmp_path):
    runs = [one_task(tmp_path / name, 80.0, parts=("scores",)) for name in ("a", "b")]
    left, right = tables.groups(runs)
    assert (left.label, right.label) == ("a", "b")
    (number,) = left.summaries
    assert tables.compare(number, left, right).seeds == []  # nor paired: their seeds are unknown


def compared(tmp_path, a, b):
    runs = [
        one_task(tmp_path / f"{m}{s}", v, method=m, seed=s)
        for m, values in (("a", a), ("b", b))
        for s, v in enumerate(values)
    ]
    left, right = tables.groups(runs)
    (number,) = left.summaries
    found = tables.winners([left, right], [number])
    return tables.compare(number, left, right), found.get(number)


def test_a_clear_paired_difference_has_a_winner(tmp_path):
    found, best = compared(tmp_path, (70.0, 80.0, 90.0), (72.0, 82.1, 91.9))
    assert found.mean == pytest.approx(2.0)
    assert found.bootstrap[0] >= 1.9 and found.bootstrap[1] <= 2.1  # of means of 2, 2.1, 1.9
    assert found.winner == best == "b"


def test_seeds_that_do_not_differ_count_as_one_and_win_nothing(tmp_path):
    found, best = compared(tmp_path, (10.0, 10.0, 10.0), (16.67, 16.67, 16.67))
    assert found.winner is None and best is None
    same, other = (
        tables.groups([one_task(tmp_path / f"{m}{s}", v, method=m, seed=s) for s in range(3)])[0]
        for m, v in (("c", 16.67), ("d", 50.0))
    )
    ((_, summary),) = same.summaries.items()
    assert (summary.n, summary.spread, summary.low) == (1, None, None)
    said = tables.warnings([same, other])
    assert "c: deterministic: seeds do not differ; 3 runs count as one." in said
    assert "**" not in markdown.score_table([same, other])


def test_equal_scores_of_unequal_answers_are_replicates(tmp_path):
    runs = [one_task(tmp_path / str(s), 50.0, seed=s) for s in range(3)]
    for run in runs:
        (run.folder / "predictions").mkdir()
        (run.folder / "predictions" / "0_0.jsonl").write_text(f'{{"id": "a", "label": {run.seed}}}\n')
    (group,) = tables.groups(runs)
    ((_, summary),) = group.summaries.items()
    assert not group.deterministic and (summary.n, summary.spread) == (3, 0.0)


def test_two_seeds_have_no_winner_however_clear(tmp_path):
    found, best = compared(tmp_path, (10.0, 11.0), (90.0, 91.0))
    assert found.winner is None and best is None and "needs 3" in found.reason


def test_an_interval_that_holds_zero_has_no_winner(tmp_path):
    found, best = compared(tmp_path, (70.0, 80.0, 90.0), (75.0, 79.0, 92.0))  # 5, -1, 2
    assert found.mean == pytest.approx(2.0)
    assert found.winner is None and best is None and "holds 0" in found.reason


def test_three_pairs_of_one_sign_convince_the_bootstrap_but_not_the_verdict(tmp_path):
    found, best = compared(tmp_path, (70.0, 80.0, 90.0), (70.1, 83.0, 99.0))  # 0.1, 3, 9
    assert found.bootstrap[0] > 0 > found.student[0]
    assert found.winner is None and best is None


def test_only_shared_seeds_are_compared(tmp_path):
    left = tables.groups([one_task(tmp_path / f"a{s}", 50.0 + s, method="a", seed=s) for s in (0, 1)])
    right = tables.groups([one_task(tmp_path / f"b{s}", 60.0 + s, method="b", seed=s) for s in (1, 2)])
    (number,) = left[0].summaries
    assert tables.compare(number, left[0], right[0]).seeds == [1]


def test_less_forgetting_is_better(tmp_path):
    runs = [
        load.read(write_run(tmp_path / f"{m}{s}", matrix=falling(3, loss=x, seed=s), method=m, seed=s))
        for m, x in (("keeps", 1.0), ("loses", 9.0))
        for s in range(3)
    ]
    found = tables.groups(runs)
    number = next(n for n in found[0].summaries if n.aggregate == "forgetting")
    assert number.direction == "down"
    assert tables.winners(found, [number]) == {number: "keeps"}


def test_numbers_of_a_run_by_hand(tmp_path):
    run = load.read(write_run(tmp_path / "r", matrix=[[90, None], [70, 50]], initial=[10, 20]))
    found = {n.aggregate: v for n, v in tables.run_numbers(run).items()}
    assert found == {"average": 75, "last": 60, "when_learned": 70, "forgetting": 20, "bwt": -20}


def test_an_instruction_run_is_told_in_its_fields_own_numbers(tmp_path):
    folder = write_run(tmp_path / "r", matrix=[[80, None, None], [60, 70, None], [50, 65, 90]], expect=EXPECTED)
    scores = json.loads((folder / "scores.json").read_text())
    scores["headline"] = "answer_accuracy"
    for row in scores["rows"]:
        right = row["values"].pop("accuracy")
        row["values"] = {"answer_accuracy": right, "format_errors": 100 - right, "superficial": 1.0, "essential": 2.0}
    (folder / "scores.json").write_text(json.dumps(scores))
    group = tables.groups([load.read(folder)])[0]
    found = {n.title: (round(s.mean, 3), n.arrow) for n, s in group.summaries.items()}
    assert found["MFT (answer accuracy when learned)"] == (80, "↑")
    assert found["MFN (final answer accuracy)"] == (68.333, "↑")
    assert found["MAA (average answer accuracy)"] == (71.111, "↑")
    assert found["BWT (MFN - MFT)"] == (-11.667, "↑")
    assert found["backward transfer"] == (-17.5, "↑")
    assert found["final format errors"] == (31.667, "↓")
    assert {"final superficial", "final essential"} <= set(found)
    assert [p.ours.mean for p in published(group)] == [pytest.approx(80), pytest.approx(-11.667, abs=1e-3)]


EXPECTED = [{"metric": "MFT", "value": 70.0}, {"metric": "bwt", "value": -10.0}]


def test_where_only_the_current_task_is_tested_the_mean_over_tasks_is_given(tmp_path):
    run = load.read(write_run(tmp_path / "r", matrix=[[90, None], [None, 50]]))
    assert {n.aggregate: v for n, v in tables.run_numbers(run).items()} == {"when_learned": 70}


def test_other_weights_and_repeated_seeds_are_warned_of(tmp_path):
    runs = [one_task(tmp_path / "a", 80.0, seed=0), one_task(tmp_path / "b", 81.0, seed=0, weights="b" * 64)]
    said = " ".join(tables.warnings(tables.groups(runs)))
    assert "not made with the same weights: clip.sha256" in said and "same data" not in said
    assert "seed 0 occurs more than once" in said
    assert tables.warnings(tables.groups(runs[:1])) == []


def test_the_same_weights_in_another_role_are_the_same(tmp_path):
    runs = [one_task(tmp_path / name, 80.0, seed=0) for name in "abc"]
    for run, roles in zip(runs, ({"clip": "a"}, {"backbone": "a"}, {"clip": "a", "reward": "b"})):
        models = {role: {"sha256": {"model.safetensors": 64 * mark}, "revision": None} for role, mark in roles.items()}
        run.card["weights"] = models
    assert not any("weights" in said for said in tables.warnings(tables.groups(runs)))
    runs[1].card["weights"]["backbone"]["sha256"]["model.safetensors"] = 64 * "c"
    said = " ".join(tables.warnings(tables.groups(runs)))
    assert "not made with the same weights: backbone, clip, reward differ" in said


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"not a run's folder.*scores\.json"):
        load.read(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load.read(tmp_path / "absent")


def test_missing_and_torn_parts_are_noted_and_damaged_ones_refused(tmp_path):
    folder = write_run(tmp_path / "r", matrix=[[80.0]], parts=("scores", "events"))
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"time": 1, "eve')
    run = load.read(folder)
    assert run.notes == [
        "card.json is missing",
        "recipe.yaml is missing",
        "events.jsonl: 1 damaged line(s) left out",
    ]
    assert len(run.events) == 2 and run.seed is None
    (folder / "scores.json").write_text('{"tasks": [')
    with pytest.raises(DataError, match=r"scores\.json: this is no JSON"):
        load.read(folder)


def test_accuracy_with_the_task_known_has_its_own_forgetting_beside_the_headlines(tmp_path):
    """By hand: of two tasks the first falls from 90 to 50, and from 95 to 85 with the task known."""
    folder = write_run(tmp_path / "run", matrix=[[90.0, None], [50.0, 80.0]])
    scores = json.loads((folder / "scores.json").read_text())
    known = {(0, 0): 95.0, (1, 0): 85.0, (1, 1): 90.0}
    for row in scores["rows"]:
        row["values"]["accuracy_in_task"] = known[row["after"], row["asked"]]
    (folder / "scores.json").write_text(json.dumps(scores))
    found = {number.title: value for number, value in tables.run_numbers(load.read(folder)).items()}
    assert found == {
        "average incremental accuracy": 77.5,
        "final accuracy": 65.0,
        "accuracy when learned": 85.0,
        "forgetting": 40.0,
        "backward transfer": -40.0,
        "average incremental accuracy in task": 91.25,
        "final accuracy in task": 87.5,
        "accuracy in task when learned": 92.5,
        "forgetting, task known": 10.0,
        "backward transfer, task known": -10.0,
    }


def test_one_pass_gives_both(tmp_path):
    """Each record's best answer of all and of its task: what is right of all is right of its own."""
    plain = tiny_stream(tasks=2, train=4, test=4, size=16)
    asked = tuple(replace(task, metrics=("accuracy", "accuracy_in_task")) for task in plain)
    stream = replace(plain, tasks=asked)
    scores = loop.run(METHODS["prototype"].make(), stream, runtime=Runtime(device="cpu", quiet=True, out=tmp_path))
    both = {(row["after"], row["asked"]): row["values"] for row in scores.rows}
    assert set(both) == {(0, 0), (1, 0), (1, 1)}
    records = [json.loads(line) for line in (tmp_path / "predictions" / "1_0.jsonl").read_text().splitlines()]
    for name, key in (("accuracy", "predicted"), ("accuracy_in_task", "predicted_in_task")):
        assert both[1, 0][name] == 100 * sum(r[key] == r["target"] for r in records) / len(records)
    assert {r["predicted_in_task"] for r in records} <= {0, 1}
    assert all(r["predicted_in_task"] == r["target"] for r in records if r["predicted"] == r["target"])
