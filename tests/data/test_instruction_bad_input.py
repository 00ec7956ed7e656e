"""Everything that can be wrong with instruction data: where it is, what was found, what was expected, what to do."""

import json

import pytest

from perdure.data import instruction
from perdure.errors import DataError, PerdureError, UnreadableExample
from perdure.metrics.vqa_files import join
from perdure.prepare.chat import Endpoint, Journal, Request, ask_all
from perdure.types import Example
from tests.tiny_instruction import tiny_llava


def record(question="What?", answer="a", role="human", **more):
    return {"id": "r7", "conversations": [{"from": role, "value": question}, {"from": "gpt", "value": answer}], **more}


TRAINING = {
    "record without its image file": (
        record("<image>\nWhat?", image="GQA/x.png"),
        "'image' names GQA/x.png, which is not under",
        "is it the right folder?",
    ),
    "record without its video": (
        record("<video>\nWhat?", video=["a.png", "b.png"]),
        "'video' names a.png, which is not under",
        "is it the right folder?",
    ),
    "mark without a video": (
        record("<video>\nWhat?"),
        "'video' is missing, but a message begins with <video>",
        "Repair or remove",
    ),
    "image and video": (
        record("<video>\nWhat?", video="a.mp4", image="x.png"),
        "there are an 'image' and a 'video', expected one or the other",
        "Repair or remove",
    ),
    "unknown role": (record(role="user"), "message 0 is from 'user', neither 'human' nor 'gpt'", "Repair or remove"),
    "empty answer": (record(answer=" "), "an answer is empty, expected a text", "Repair or remove"),
    "answer with the separator": (record(answer="a</s>b"), "an answer holds '</s>', which ends it", "on_fault=skip"),
    "box outside the image": (
        record(answer="[0.1, 0.2, 1.5, 0.9]"),
        "the box [0.1, 0.2, 1.5, 0.9] is not within [0, 1], expected shares",
        "on_fault=skip",
    ),
}


@pytest.mark.parametrize(("bad", "found", "todo"), TRAINING.values(), ids=TRAINING)
def test_faulty_training_record_is_named_with_file_and_remedy(tmp_path, bad, found, todo):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([record(), bad]))
    with pytest.raises(DataError) as error:
        instruction.read(instruction.Config(train=path, images=tmp_path, scorer="grounding"))
    assert str(error.value).startswith(f"{path}, record 1 (r7): {found}")
    assert todo in str(error.value)


@pytest.mark.parametrize(
    ("questions", "found"),
    [
        ([{"question_id": 1, "text": "q", "answer_bbox": "[0, 0, 2, 1]"}], "within [0, 1]"),
        ([{"question_id": 1, "text": "q", "answer_bbox": [0, 0, 1, 1]}] * 2, "expected one question an id"),
    ],
)
def test_faulty_question_is_named_with_file_and_remedy(tmp_path, questions, found):
    path = tmp_path / "test.json"
    path.write_text(json.dumps(questions))
    with pytest.raises(DataError) as error:
        instruction.read(instruction.Config(test=path, scorer="grounding"))
    said = str(error.value)
    assert said.startswith(f"{path}, record {len(questions) - 1} (1): ")
    assert found in said and "Repair or remove" in said


def test_sequence_over_the_limit_is_named_with_the_limit():
    llava = tiny_llava()
    llava.max_length = 60
    said = [{"from": "human", "value": "W" * 80}, {"from": "gpt", "value": "a"}]
    with pytest.raises(UnreadableExample) as error:
        llava.preprocess(Example(id="GQA/train/3/r7", inputs={"conversations": said}), True)
    assert told(error.value) == ("GQA/train/3/r7", "no answer lies within the first 60 tokens", True, True)


def test_predictions_for_unknown_ids_are_named_with_ids_that_are_known():
    with pytest.raises(DataError) as error:
        join([{"id": "9", "text": "a"}], {"1": "a"}, "vqav2", where="merge.jsonl")
    assert told(error.value) == ("merge.jsonl", "predictions for 1 unknown ids: 9", True, True)
    assert "such as 1" in error.value.expected


def test_repeated_ids_are_named():
    with pytest.raises(DataError) as error:
        join([{"id": "1", "text": "a"}] * 2, {"1": "a"}, "vqav2", where="merge.jsonl")
    assert told(error.value) == ("merge.jsonl", "1 ids are predicted more than once: 1", True, True)


def test_an_endpoint_that_is_down_is_named_and_what_was_answered_is_kept():
    chat = Endpoint(base_url="http://127.0.0.1:9/v1", name="m", patience=0.0, retries=0, give_up_after=2)
    with pytest.raises(PerdureError) as error:
        ask_all(chat, [Request(system="s", user=str(i)) for i in range(4)], Journal())
    assert error.value.where == "http://127.0.0.1:9/v1"
    assert "2 requests failed in a row, the last one with: no answer" in error.value.what
    assert "run the same command again" in error.value.todo


def told(error):
    return error.where, error.what, bool(error.expected), bool(error.todo)
