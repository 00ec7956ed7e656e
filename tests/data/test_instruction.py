"""LLaVA-format records: what is read, and how each fault is told."""

import json

import numpy as np
import pytest
from PIL import Image

from perdure.data import instruction
from perdure.errors import DataError


def said(*values, image=None, name="r1"):
    roles = ("human", "gpt") * len(values)
    record = {"id": name, "conversations": [{"from": r, "value": v} for r, v in zip(roles, values)]}
    return record if image is None else {**record, "image": image}


def write(folder, name, records):
    path = folder / name
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.fixture
def images(tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "pictures" / "a.png")
    return tmp_path


def test_training_and_test_records_become_examples(images):
    train = write(images, "train.json", [said("<image>\nWhat?", "a cat", image="pictures/a.png"), said("Why?", "so")])
    test = write(images, "test.json", [{"question_id": 7, "text": "<image>\nWhat?", "answer": "cat"}])
    data = instruction.read(instruction.Config(train=train, test=test, images=images, scorer="vqav2"))
    assert [e.inputs.get("image") for e in data.train] == [images / "pictures/a.png", None]
    assert data.train[0].inputs["conversations"][1]["value"] == "a cat"
    assert data.test[0].inputs == {"text": "What?"}
    assert data.test[0].target == {"answer": "cat", "scorer": "vqav2", "form": "phrase", "official": False}


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (said("<image>\nWhat?", "a cat", image="pictures/b.png"), "names pictures/b.png, which is not under"),
        ({"conversations": [{"from": "user", "value": "x"}]}, "message 0 is from 'user'"),
        (said("What?", ""), "an answer is empty"),
        (said("What?", "no ASSISTANT: yes"), "an answer holds ' ASSISTANT: '"),
        (said("What?", "no</s>yes"), "an answer holds '</s>'"),
        (said("What?"), "do not alternate"),
        (said("<image>\nWhat?", "a"), "'image' is None, but 1 messages say <image>"),
        (said("What?", "a", image="pictures/a.png"), "but 0 messages say <image>"),
        ({"id": "x"}, "'conversations' is missing or empty"),
        ({"conversations": [{"from": "human"}]}, "message 0 has no text"),
        (said("<image>\nWhat?", "a", image=3), "'image' is 3, expected a path"),
    ],
)
def test_fault_names_file_and_record(images, record, fault):
    train = write(images, "train.json", [said("Why?", "so"), record])
    with pytest.raises(DataError) as error:
        instruction.read(instruction.Config(train=train, images=images))
    assert "train.json, record 1" in str(error.value) and fault in str(error.value)


def test_box_outside_the_image_is_a_fault_of_grounding_data(images):
    train = write(images, "train.json", [said("Where?", "[0.1, 0.2, 1.5, 0.6]")])
    with pytest.raises(DataError, match=r"record 0 \(r1\): the box .* is not within"):
        instruction.read(instruction.Config(train=train, images=images, scorer="grounding"))
    instruction.read(instruction.Config(train=train, images=images))


def test_all_faults_are_told_at_once_or_left_out_and_counted(images):
    train = write(images, "train.json", [said("a", ""), said("b", "c"), said("d")])
    with pytest.raises(DataError) as error:
        instruction.read(instruction.Config(train=train, images=images))
    assert "record 0" in str(error.value) and "record 2" in str(error.value)
    data = instruction.read(instruction.Config(train=train, images=images, on_fault="skip"))
    assert len(data.train) == 1 and data.facts["left_out"] == 2


def test_repeated_question_and_missing_answer_are_faults(images):
    rows = [{"question_id": 1, "text": "a", "answer": "b"}, {"question_id": "1", "text": "a", "answer": "b"}]
    with pytest.raises(DataError, match="question_id 1 occurs twice"):
        instruction.read(instruction.Config(test=write(images, "test.json", rows)))
    with pytest.raises(DataError, match="'answer' is missing"):
        instruction.read(instruction.Config(test=write(images, "t.json", [{"question_id": 1, "text": "a"}])))


def test_scienceqa_question_gets_its_request_and_counts_its_choices(tmp_path):
    rows = [{"question_id": 1, "text": "Which?\nA. x\nB. y", "answer": "B"}]
    config = instruction.Config(test=write(tmp_path, "test.json", rows), scorer="scienceqa")
    example = instruction.read(config).test[0]
    assert example.inputs["text"].endswith(instruction.LETTER_REQUEST)
    assert example.target["answer"] == {"letter": "B", "choices": 2}


def test_file_that_is_no_list_or_no_json_is_named(tmp_path):
    with pytest.raises(DataError, match="no list of records"):
        instruction.read(instruction.Config(train=write(tmp_path, "train.json", {"a": 1})))
    (tmp_path / "bad.json").write_text("[{")
    with pytest.raises(DataError, match=r"bad\.json: this is no JSON"):
        instruction.read(instruction.Config(train=tmp_path / "bad.json"))
    with pytest.raises(DataError, match=r"absent\.json: there is no such file"):
        instruction.read(instruction.Config(train=tmp_path / "absent.json"))
