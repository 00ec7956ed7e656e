"""Answers judged by a chat model: what it is asked, how its replies are read, and the command against a real server."""

import json

import pytest

from perdure import metrics
from perdure.cli import main
from perdure.errors import DataError
from perdure.prepare.judge import COMPARE, EXTRACT, judge_file, same_answer
from tests.prepare.test_chat import Server, completion


class Judge:
    """Replies by rule, in memory."""

    name = "judge"
    sees = False

    def __init__(self, says):
        self.says, self.asked = says, []

    def ask(self, requests, reply):
        for i, request in enumerate(requests):
            self.asked.append(request)
            said = self.says(request)
            reply(i, said, "" if said is not None else "it is silent")


def records(*rows, scorer="exact"):
    common = {"scorer": scorer, "form": "any", "official": False, "has_image": True}
    made = [{"question": q, "prediction": p, "target": t, **common} for q, p, t in rows]
    return [{"id": f"math/test/{i}", **row} for i, row in enumerate(made)]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS = records(
    ("How many?", "12", "12"),
    ("How many?", "There are 3 and 9, so 12.", "12"),
    ("How many?", "I count seven.", "12"),
    ("Which?\n(A) a cat (B) a dog", "It must be the dog.", "B"),
)


def test_answers_that_no_rule_finds_right_are_extracted_and_compared(tmp_path):
    replies = {"12.": "12", "seven": "7", "dog": "a dog"}
    judge = Judge(lambda request: next(said for word, said in replies.items() if word in request.user))
    found = judge_file(written(tmp_path / "0_0.jsonl", ROWS), tmp_path / "0_0.judged.jsonl", judge)
    assert found == {"judged_accuracy": 75.0, "by_rule": 1, "asked": 3}
    rows = [json.loads(line) for line in (tmp_path / "0_0.judged.jsonl").read_text().splitlines()]
    assert [row["judged"] for row in rows] == [1, 1, 0, 1]
    assert [{k: v for k, v in row.items() if k != "judged"} for row in rows] == ROWS
    assert metrics.compute("judged_accuracy", rows) == 75
    assert {request.system for request in judge.asked} == {EXTRACT}
    assert not any("Reference" in request.user for request in judge.asked)  # what is extracted must not be led
    again = Judge(lambda request: pytest.fail("asked twice"))
    assert judge_file(tmp_path / "0_0.jsonl", tmp_path / "0_0.judged.jsonl", again) == found


def test_or_compared_with_the_reference_by_meaning(tmp_path):
    judge = Judge(lambda request: "Yes." if "dog" in request.user or "12." in request.user else "no")
    found = judge_file(written(tmp_path / "a.jsonl", ROWS), tmp_path / "b.jsonl", judge, how="compare")
    assert found["judged_accuracy"] == 75
    assert {request.system for request in judge.asked} == {COMPARE}
    assert "Reference answer: 12\n" in judge.asked[0].user
    several = records(("What is written?", "stop sign", ["stop", "halt"]), scorer="caption")
    judge_file(written(tmp_path / "c.jsonl", several), tmp_path / "d.jsonl", judge, how="compare")
    assert "Reference answer: stop / halt\n" in judge.asked[-1].user


def test_reply_that_cannot_be_read_is_asked_for_again_and_then_named(tmp_path):
    path = written(tmp_path / "a.jsonl", ROWS)
    hesitating = Judge(lambda request: "yes" if request.attempt else "perhaps")
    assert judge_file(path, tmp_path / "b.jsonl", hesitating, how="compare")["judged_accuracy"] == 100
    (tmp_path / "b.replies.jsonl").unlink()
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(DataError, match=r"3 of 4 answers could not be judged \(the reply 'hm'.*") as fault:
        judge_file(path, tmp_path / "b.jsonl", Judge(lambda request: "hm"), how="compare")
    assert "math/test/1" in str(fault.value)
    assert not (tmp_path / "b.jsonl").exists()
    with pytest.raises(DataError, match="it is silent"):
        judge_file(path, tmp_path / "b.jsonl", Judge(lambda request: None))
    with pytest.raises(DataError, match="no records of answers"):
        judge_file(written(tmp_path / "c.jsonl", [{"id": 1}]), tmp_path / "b.jsonl", hesitating)


@pytest.mark.parametrize(
    ("mine", "truth", "same"),
    [
        ("12", "12", True),
        ("12.0", "12", True),
        ("3.14159", "3.14", True),
        ("3.15", "3.14", False),
        ("1,200", "1200", True),
        ("40%", "40", True),
        ("Cat.", "cat", True),
        ("(B)", "a dog", True),
        ("a dog", "B", True),
        ("A", "B", False),
        ("none", "B", False),
    ],
)
def test_same_answers(mine, truth, same):
    assert same_answer(mine, truth, "Which?\n(A) a cat\n(B) a dog") is same


def test_command_asks_a_server_and_score_averages(tmp_path, capsys):
    path = written(tmp_path / "3_1.jsonl", ROWS)

    def behave(number, body):
        assert body["temperature"] == 0
        return completion("12" if "12." in body["messages"][1]["content"] else "none")

    def command(*arguments):
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments])
        return leaving.value.code, *capsys.readouterr()

    with Server(behave) as server:
        code, out, _ = command("prepare", "judge", path, "--endpoint", server.url, "--model", "m")
        assert code == 0
        assert "judged_accuracy 50.00  (1 by rule, 3 asked about)" in out
        assert len(server.bodies) == 3
    code, out, _ = command("score", tmp_path / "3_1.judged.jsonl", "--metric", "judged_accuracy")
    assert code == 0
    assert "50.00" in out
    code, _, err = command("score", path, "--metric", "judged_accuracy")
    assert code == 2
    assert "the record was not judged" in err and "perdure prepare judge" in err
    code, _, err = command("prepare", "judge", path)
    assert code == 2
    assert "there is no judge" in err and "--endpoint URL --model NAME" in err
