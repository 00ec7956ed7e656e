"""`prepare`, `score` and `predict` over what is no address, no count, no record and no list of classes."""

from __future__ import annotations

import contextlib
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.cli import main
from perdure.errors import DataError
from perdure.metrics.vqa_files import read_annotations
from perdure.prepare.chat import Endpoint, Request
from perdure.prepare.prompts import Prompt
from perdure.prepare.replies import BadReply, read_reply

RECORD = {"id": "1", "conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a thing"}]}


def endpoint(**settings):
    return Endpoint(**{"base_url": "http://localhost:1/v1", "name": "m", **settings})


def said(capsys, *arguments):
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return left.value.code, captured.out, captured.err


# -- endpoints ------------------------------------------------------------------------------------------


ADDRESSES = ["http://", "http://[::1", "http://[", "ftp://x", "x", "http://a b/", "http://127.0.0.1:99999"]
ADDRESSES += ["http://h:-1/", "http://h:abc/v1", "http://\x1b[31m/", "http://" + "a" * 300, "http://...", "http://a..b"]


@pytest.mark.parametrize("address", [*ADDRESSES, "http://☃/", "file:///etc/passwd", "http://h\n", "http://h:0"])
def test_an_address_that_is_none_is_refused_before_anything_is_asked(address):
    with pytest.raises(DataError, match="this is no address of an endpoint"):
        endpoint(base_url=address)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("htps:/[]@.0123456789ab \t\x1bé%?#"), max_size=20))
def test_any_text_is_an_address_or_one_message(text):
    for address in (text, "http://" + text):
        try:
            endpoint(base_url=address)
        except DataError as refused:
            assert "no address of an endpoint" in str(refused)


@pytest.mark.parametrize("address", ["http://localhost:8000/v1", "https://api.example.org/v1/", "http://[::1]:80"])
def test_an_address_is_taken(address):
    assert endpoint(base_url=address).base_url == address


NUMBERS = st.integers(-(10**30), 10**30) | st.floats()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["parallel", "per_minute", "timeout"]), NUMBERS)
def test_counts_and_times_of_an_endpoint_have_bounds(name, number):
    try:
        assert 1e-3 <= getattr(endpoint(**{name: number}), name) <= 1e6
    except DataError as refused:
        assert f"--{name.replace('_', '-')}: is " in str(refused)


@pytest.mark.parametrize("name", ["", "a=b", "\x1b", "a b", "1a"])
def test_a_variable_that_no_environment_has_is_named(name):
    with pytest.raises(DataError, match="--key-variable"):
        endpoint(key_variable=name)


def test_a_key_that_no_header_takes_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret\nline")
    with pytest.raises(DataError, match="SOME_KEY") as refused:
        endpoint(key_variable="SOME_KEY")
    assert "secret" not in str(refused.value)


def test_an_image_that_is_a_device_is_not_read(tmp_path):
    (tmp_path / "a.png").symlink_to("/dev/zero")
    text, why = endpoint()._one(Request(system="", user="", image=tmp_path / "a.png"))
    assert text is None and "cannot be read" in why


# -- replies --------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.text(st.sampled_from('[{"a":1,}] \n/\x1b'), max_size=30) | st.sampled_from(["[" * 100_000, '{"a":' * 50_000]))
def test_any_reply_is_read_or_refused(text):
    wanted = Prompt(system="", user="", key="a")
    with contextlib.suppress(BadReply):
        assert all(isinstance(value, str) for value in read_reply(text, wanted))


# -- files ----------------------------------------------------------------------------------------------


BAD = {"binary": b"\xff\xfe\x00", "number": b"3", "numbers": b"[1, 2]", "null": b"null", "deep": b"[" * 100_000}
BAD |= {"an_image_list": json.dumps([{**RECORD, "image": [1]}]).encode(), "torn": b'[{"id"', "empty": b""}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("what", ["asd", "predictions", "coco-results", "score", "answers"])
def test_a_file_of_something_else_is_one_message(tmp_path, capsys, monkeypatch, what, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.json").write_bytes(BAD[name])
    (tmp_path / "good.jsonl").write_text('{"question_id": 1, "text": "a"}\n')
    (tmp_path / "answers.json").write_text('[{"question_id": 1, "answer": "a"}]')
    joined = ("--task", "vizwiz", "--out", "o", "--answers")
    prepare = {
        "asd": ("prepare", "asd", "x.json", "--kind", "question", "--share", 100),
        "predictions": (
            "prepare",
            "predictions",
            "x.json",
            "--task",
            "vizwiz",
            "--answers",
            "answers.json",
            "--out",
            "o",
        ),
        "answers": ("prepare", "predictions", "good.jsonl", *joined, "x.json"),
        "coco-results": ("prepare", "coco-results", "x.json", "--out", "o"),
        "score": ("score", "x.json"),
    }
    code, _, err = said(capsys, *prepare[what])
    assert "internal error" not in err and "Traceback" not in err
    assert (
        (code == 2 and err.count("\n") <= 2)
        or (what, name, code) == ("asd", "an_image_list", 1)  # one record: too few for any share
        or (what, code) == ("asd", 0)
        or (what, name, code)
        == (
            "predictions",
            "empty",
            0,
        )
    )


PROBLEM = {"answer": 0, "choices": ["a", "b"]}


@pytest.mark.parametrize(
    ("problem", "test"),
    [
        (PROBLEM | {"answer": 10}, ["1"]),
        (PROBLEM | {"answer": "x"}, ["1"]),
        ({"answer": 0}, ["1"]),
        (5, ["1"]),
        (PROBLEM, 5),
        (PROBLEM, [1, [2]]),
        (PROBLEM, None),
    ],
)
def test_questions_of_scienceqa_without_an_answer_are_named(tmp_path, problem, test):
    (tmp_path / "problems.json").write_text(json.dumps({"1": problem}))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": test}))
    with pytest.raises(DataError):
        read_annotations(tmp_path, "scienceqa")


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
FIELDS = ["id", "target", "predicted", "top5", "confidence", "rank", "caption", "references", "kind", "labels", "iou"]
SCORES = ["accuracy", "top5", "per_class_accuracy", "answer_accuracy", "recall_1", "segment_f1", "score", "mask_iou"]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(FIELDS), VALUES | st.dictionaries(st.just("a"), VALUES)), st.sampled_from(SCORES)
)
def test_any_record_is_scored_or_refused(tmp_path, capsys, record, metric):
    file = tmp_path / "0_0.jsonl"
    file.write_text(json.dumps(record) + "\n")
    code, _, err = said(capsys, "score", file, "--metric", metric)
    assert code in (0, 2) and "internal error" not in err, err


@pytest.mark.parametrize("name", ["3_3.jsonl", "1000000_1000000.jsonl", f"0_{10**30}.jsonl", "-9_0.jsonl"])
def test_predictions_named_for_a_task_that_is_none_are_refused(tmp_path, capsys, name):
    (tmp_path / "predictions").mkdir()
    (tmp_path / "scores.json").write_text('{"tasks": ["a"], "headline": "accuracy", "rows": []}')
    (tmp_path / "predictions" / name).write_text('{"id": "a", "target": 0, "predicted": 0}\n')
    code, _, err = said(capsys, "score", tmp_path)
    assert code == 2 and name in err


@pytest.mark.parametrize("classes", ['"a', 'a,"b" c', "a,\x1b[31mb", "a,b\0"])
def test_classes_with_odd_quotes_or_control_characters_are_refused(tmp_path, capsys, classes):
    from perdure.cli._adapt import read_classes

    with pytest.raises(DataError, match="--classes"):
        read_classes(classes)
    (tmp_path / "c.txt").write_text(classes.replace(",", "\n"))
    if not classes.isprintable():
        with pytest.raises(DataError, match="control character"):
            read_classes(f"@{tmp_path / 'c.txt'}")


# -- a terminal -----------------------------------------------------------------------------------------


def on_a_terminal(monkeypatch, *arguments):
    """What a command writes to a terminal, both outputs."""
    read, write = os.openpty()
    os.set_blocking(read, False)
    with os.fdopen(write, "w", encoding="utf-8", newline="") as terminal, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", terminal)
        patch.setattr("sys.stderr", terminal)
        with pytest.raises(SystemExit):
            main(list(arguments))
        terminal.flush()
        shown = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                shown += os.read(read, 65536)
    os.close(read)
    return shown.decode().replace("\r\n", "\n")


def run_called(name, folder):
    rows = [{"after": 0, "asked": 0, "n": 2, "values": {name: 50.0}}]
    (folder / "scores.json").write_text(json.dumps({"tasks": [name], "headline": name, "rows": rows}))
    return str(folder)


def obeyed(text):
    return [c for c in text if c not in "\n\t" and (ord(c) < 32 or 127 <= ord(c) < 160)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8))
def test_no_message_and_no_table_holds_what_a_terminal_obeys(tmp_path, monkeypatch, name):
    run = run_called(name, tmp_path)
    for arguments in (["show", name], ["data", "check", name], ["show", run], ["score", run], [name], ["list", name]):
        assert not obeyed(on_a_terminal(monkeypatch, *arguments))


def test_a_report_shows_the_names_of_a_run_escaped(tmp_path, monkeypatch):
    shown = on_a_terminal(monkeypatch, "report", run_called("a\x1b[31m\x07", tmp_path))
    assert r"a\x1b[31m\x07" in shown and not obeyed(shown)
