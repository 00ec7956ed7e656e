"""Runs made again from their cards; what determinism measures, and cards that state it; cards beside each other."""

import json
import shutil
from dataclasses import replace

import pytest

from perdure import api, recipe
from perdure.auditing import determinism
from perdure.auditing.comparing import Apart, apart, scores_apart
from perdure.auditing.determinism import Way
from perdure.cli import main
from tests.auditing.conftest import RECIPE


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([*map(str, arguments)])
    captured = capsys.readouterr()
    return left.value.code, captured.out, captured.err


def changed(file, change):
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def nudge(run, *, by, answers=0):
    """Move the first number of the first record of the last test, and some answers."""
    file = run / "predictions" / "1_1.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    records[0]["energy"] *= 1 + by
    for record in records[:answers]:
        record["predicted"] = -1
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records[0]["id"]


# -- comparing ----------------------------------------------------------------------------------------------


def test_two_copies_are_the_same_and_a_moved_number_is_named(runs):
    one, other = runs / "seed_0", shutil.copytree(runs / "seed_0", runs / "copy")
    assert apart(one, other).same
    name = nudge(other, by=1e-3, answers=1)
    found = apart(one, other)
    assert not found.same
    assert found.numbers == pytest.approx(1e-3, rel=0.5)
    assert (found.answers, found.records, found.score) == (1, 75, 0.0)
    assert found.first == f"after task 2, task 2, record {name}"


def test_a_missing_test_is_no_small_difference(runs):
    one, other = runs / "seed_0", shutil.copytree(runs / "seed_0", runs / "copy")
    changed(other / "scores.json", lambda scores: scores["rows"].pop())
    assert apart(one, other).score == float("inf")


def test_matrices_are_compared_where_no_records_are():
    one = {"values": [[90.0, None], [80.0, 70.0]], "n": [[5, 0], [5, 5]]}
    assert scores_apart(one, one).same
    found = scores_apart(one, {**one, "values": [[90.0, None], [80.0, 72.5]]})
    assert (found.score, found.first) == (2.5, "after task 2, task 2")


def test_within_a_tolerance_is_within_all_of_it():
    found = Apart(score=0.1, numbers=1e-6, answers=1, records=100)
    stated = {"score": 0.2, "numbers": 1e-5, "answers": 2, "records": 100}
    assert found.within(stated)
    assert not replace(found, numbers=1e-4).within(stated)
    assert not replace(found, answers=3).within(stated)
    assert not found.within({})


# -- perdure repro ------------------------------------------------------------------------------------------


def test_a_run_is_made_again_to_the_last_digit(runs, tmp_path, capsys):
    code, out, _ = said(capsys, "repro", runs / "seed_1", "--out", tmp_path / "again", "-q")
    assert code == 0
    assert out.startswith("identical: scores and every record compared, 75 records")
    assert json.loads((tmp_path / "again" / "small" / "seed_1" / "repro.json").read_text())["verdict"] == "identical"


def test_a_card_alone_is_enough_and_the_first_difference_is_said(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    card = tmp_path / "card.json"
    shutil.copy(runs / "seed_0" / "card.json", card)
    code, out, _ = said(capsys, "repro", card, "--out", tmp_path / "again", "-q")
    assert code == 0
    assert out.startswith("identical: the card's matrix of scores")
    name = nudge(runs / "seed_0", by=1e-5)
    code, out, _ = said(capsys, "repro", runs / "seed_0", "--out", tmp_path / "again", "-q")
    assert code == 1
    assert f"task 2, task 2, record {name}" in " ".join(out.split())
    assert "states no tolerance" in " ".join(out.split())
    assert all(len(line) <= 80 for line in out.splitlines() if str(tmp_path) not in line)
    stated = {"threads": {"score": 0.0, "numbers": 1e-4, "answers": 0, "records": 75}}
    changed(runs / "seed_0" / "card.json", lambda card: card.update(tolerance=stated))
    code, out, _ = said(capsys, "repro", runs / "seed_0", "--out", tmp_path / "again", "-q")
    assert code == 0
    assert out.startswith("within the tolerance")


def other_weights(card):
    card["weights"] = {"net": {"weights": "net.pt", "sha256": "0" * 64}}


HOSTILE = {
    "no file": (lambda card: None, "nowhere.json", "no card"),
    "no card": (lambda card: card.update(recipe=[]), "card.json", "recipe"),
    "an empty card": (lambda card: card.clear(), "card.json", "recipe"),
    "a recipe with a fault": (lambda card: card["recipe"]["method"].update(epochz=1), "card.json", "epochz"),
    "other weights": (other_weights, "card.json", "weights of net"),
    "other data": (lambda card: card["stream"]["data"].update(fingerprint="0" * 16), "card.json", "fingerprint"),
    "missing data": (
        lambda card: card["recipe"]["stream"].update(data={"name": "image_folder", "root": "/nowhere"}),
        "card.json",
        "/nowhere",
    ),
    "lost code": (lambda card: card.update(code={"m.py": {"path": "m.py", "sha256": "0"}}), "card.json", "m.py"),
}


@pytest.mark.parametrize("case", HOSTILE, ids=lambda name: name.replace(" ", "_"))
def test_what_cannot_be_made_again_gets_one_message_and_nothing_runs(case, runs, tmp_path, capsys):
    change, name, word = HOSTILE[case]
    changed(runs / "seed_0" / "card.json", change)
    code, out, err = said(capsys, "repro", runs / "seed_0" / name, "--out", tmp_path / "again", "-q")
    assert code == 2
    assert out == ""
    assert word in err
    assert "Traceback" not in err
    assert not list((tmp_path / "again").rglob("scores.json"))


def test_settings_that_move_numbers_are_refused(runs, tmp_path, capsys):
    code, _, err = said(capsys, "repro", runs / "seed_0", "method.lr=0.5", "--out", tmp_path / "again")
    assert code == 2
    assert "method.lr" in err


# -- perdure card diff --------------------------------------------------------------------------------------


def test_cards_are_told_apart_by_field(runs, capsys):
    code, out, _ = said(capsys, "card", "diff", runs / "seed_0", runs / "seed_1")
    assert code == 1
    assert "recipe.run.seed" in out
    assert "wall_seconds" not in out
    assert said(capsys, "card", "diff", runs / "seed_0", runs / "seed_0" / "card.json")[:2] == (0, "no difference\n")
    code, out, _ = said(capsys, "card", "diff", runs / "seed_0", runs / "seed_1", "--measured", "--json")
    assert "accuracy_matrix" in " ".join(each["field"] for each in json.loads(out))


NO_CARDS = {"nothing": "", "a list": "[]", "torn": "{", "another file": '{"recipe": 3}', "bytes": "\0\0"}


@pytest.mark.parametrize("text", NO_CARDS.values(), ids=[name.replace(" ", "_") for name in NO_CARDS])
def test_what_is_no_card_is_refused(text, runs, tmp_path, capsys):
    (tmp_path / "x.json").write_text(text)
    code, out, err = said(capsys, "card", "diff", runs / "seed_0", tmp_path / "x.json")
    assert (code, out) == (2, "")
    assert "x.json" in err
    assert said(capsys, "card", "diff", runs / "seed_0", tmp_path)[0] == 2


# -- perdure check --determinism ----------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path):
    return recipe.load(RECIPE, [f"run.out={tmp_path / 'runs'}"])


def test_what_moves_is_measured_and_later_cards_state_it(asked, monkeypatch):
    """A setting that moves numbers stands for a device whose sums round otherwise."""
    moving = [Way("threads", "two threads", ("run.threads=2",)), Way("device", "another", ("method.lr=0.5",))]
    monkeypatch.setattr(determinism, "ways", lambda *_, **__: moving)
    threads, device = determinism.measure(asked, tasks=1)
    assert threads.found.records == 25
    assert device.found.numbers > 0
    (run, *_) = api.execute(asked, quiet=True)
    card = json.loads((run.folder / "card.json").read_text())
    assert card["tolerance"]["device"]["numbers"] == device.found.numbers
    other = recipe.load(recipe.to_mapping(asked), ["method.lr=0.01", "run.name=small", "run.seeds=[7]"])
    (run, *_) = api.execute(other, quiet=True)
    assert "tolerance" not in json.loads((run.folder / "card.json").read_text())


def test_ways_that_are_not_possible_say_why(asked, monkeypatch):
    monkeypatch.setattr(determinism, "ways", lambda *_, **__: [Way("device", "on cuda", ("run.device=cuda:99",))])
    (moved,) = determinism.measure(asked, tasks=1)
    assert moved.found is None
    assert "cuda" in moved.refused


@pytest.mark.slow
def test_the_command_runs_two_processes_and_says_what_moved(tmp_path, capfd, monkeypatch):
    """In 80 columns; prototypes are means over all examples, whatever process has them."""
    monkeypatch.setenv("COLUMNS", "80")
    words = ["prototype/microworld", "stream.train_per_class=4", "stream.test_per_class=2", "run.device=cpu"]
    code, out, _ = said(capfd, "check", *words, f"run.out={tmp_path}", "--determinism", "--tasks", "1")
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines() if str(tmp_path) not in line)
    found = json.loads((tmp_path / "prototype-microworld" / "determinism.json").read_text())
    assert set(found["measured"]) == {"threads", "test batches", "processes"}
    assert found["measured"]["processes"]["records"] > 0


def test_options_that_belong_to_determinism_say_so(capsys):
    assert said(capsys, "check", "sgd/digits", "--tasks", "2")[0] == 2
    assert said(capsys, "check", "sgd/digits", "--determinism", "--json")[0] == 2


def test_a_way_is_another_device_where_there_is_one(asked, monkeypatch):
    assert [way.name for way in determinism.ways(asked)][:3] == ["threads", "test batches", "processes"]
    monkeypatch.setattr(determinism.devices, "available", lambda: ["cuda:0", "cpu"])
    assert determinism.ways(asked)[-1].settings == ("run.device=cuda:0",)
