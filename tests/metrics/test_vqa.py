"""The eight CoIN scorers: numbers that can be followed by hand."""

import json

import pytest

from perdure.errors import DataError
from perdure.metrics import vqa, vqa_files
from perdure.metrics.answer_format import FORMS, split_errors, validator
from perdure.metrics.vqa_text import normalize_answer


def record(prediction, target, identity="0", **more):
    return {"id": identity, "prediction": prediction, "target": target, **more}


def test_k_equal_answers_of_ten_give_three_tenths_each_up_to_one():
    for k, expected in {0: 0, 1: 0.3, 2: 0.6, 3: 0.9, 4: 1.0, 10: 1.0}.items():
        answers = ["stop"] * k + [f"other{i}" for i in range(10 - k)]
        assert vqa.text_vqa_value("Stop.", answers) == pytest.approx(expected)


def test_textvqa_refuses_other_than_ten_answers_and_names_the_record():
    with pytest.raises(DataError, match=r"record q7: a TextVQA question has 2 reference answers"):
        vqa.score_records([record("a", ["a", "b"], "q7")], "textvqa")


def test_grounding_box_that_the_official_parser_cuts_is_a_hit_with_the_corrected_one():
    # 0.29 becomes 0.2: intersection .08 of union .16 is not above one half; .29 / .4 = .725 is.
    assert vqa.grounding_value("[0.0,0.0,0.4,0.29]", "[0.0,0.0,0.4,0.4]", official=True) == 0
    assert vqa.grounding_value("[0.0,0.0,0.4,0.29]", "[0.0,0.0,0.4,0.4]") == 1


@pytest.mark.parametrize("text", ["", "left side", "[0.1,0.2,0.5]", "[0.6,0.6,0.2,0.2]", "[a,b,c,d]"])
def test_grounding_answer_without_a_box_is_wrong(text):
    assert vqa.grounding_value(text, [0.1, 0.2, 0.5, 0.6]) == 0
    assert vqa.grounding_value(text, [0.1, 0.2, 0.5, 0.6], official=True) == 0


@pytest.mark.parametrize("box", ["[0.1,0.2,0.5]", "[0.1,0.2,0.5,1.6]", "none", [0, 0, 1, None]])
def test_reference_box_outside_the_unit_square_is_an_error(box):
    with pytest.raises(DataError, match="the reference box is"):
        vqa.grounding_value("[0,0,1,1]", box)


def test_empty_imagenet_answer_is_right_only_officially():
    assert vqa.imagenet_value("", "hen", official=True) == 1
    assert vqa.imagenet_value("", "hen") == 0
    assert vqa.imagenet_value("Great white shark.", "great white shark") == 1
    assert vqa.imagenet_value("a", "great white shark") == 0


def test_scienceqa_letter_outside_the_choices_is_wrong():
    assert vqa.parse_letter("The answer is B") is None
    assert vqa.parse_letter("The answer is B.") == "B"
    target = {"letter": "A", "choices": 2}
    scores = vqa.score_records([record("E", target), record("A. yes", target), record("A.", target)], "scienceqa")
    assert (scores["correct"], scores["samples"]) == (1, 3)


def test_missing_scienceqa_prediction_counts_except_officially():
    records = [record("A", "A"), record(None, "A", "1")]
    assert vqa.score_records(records, "scienceqa")["accuracy"] == 50
    assert vqa.score_records(records, "scienceqa", official=True)["accuracy"] == 100


def test_unanswerable_is_a_right_ocr_answer_except_officially():
    assert vqa.ocr_vqa_value("Unanswerable", "Unanswerable") == 1
    assert vqa.ocr_vqa_value("Unanswerable", "Unanswerable", official=True) == 0


def test_gqa_question_alone_may_be_its_answer_text():
    scores = vqa.score_records([record("Yes.", "yes"), record("no", "yes")], "gqa")
    assert scores["accuracy"] == 50 and scores["samples"] == 2


def test_no_records_give_no_accuracy():
    for name in vqa.SCORERS:
        assert vqa.score_records([], name)["accuracy"] is None


def test_normaliser_removes_all_periods_but_officially_thirty_two():
    text = ".".join("ab" * 20)
    assert "." not in normalize_answer(text)
    assert normalize_answer(text, official=True).count(".") == 39 - 32


def test_values_average_to_the_accuracy():
    records = [record("cat", "Cat"), record("dog", "cat")]
    for name in ("vizwiz", "vqav2", "ocrvqa", "imagenet"):
        values = vqa.record_values(records, name)
        assert 100 * sum(values) / 2 == vqa.score_records(records, name)["accuracy"] == 50


def test_predictions_of_unknown_and_repeated_ids_are_named():
    targets = {"1": "a", "2": "b"}
    lines = [{"id": "1", "text": "a", "prompt": ""}, {"id": "9", "text": "b", "prompt": ""}]
    with pytest.raises(DataError, match="1 unknown ids: 9"):
        vqa_files.join(lines, targets, "vqav2")
    with pytest.raises(DataError, match="more than once: 1"):
        vqa_files.join([lines[0], lines[0]], targets, "vqav2")


def test_question_without_a_prediction_is_wrong_in_the_corrected_score():
    records = vqa_files.join([{"id": "1", "text": "a", "prompt": ""}], {"1": "a", "2": "b"}, "vqav2")
    assert vqa.score_records(records, "vqav2")["accuracy"] == 50


def test_broken_prediction_line_is_named(tmp_path):
    path = tmp_path / "merge.jsonl"
    path.write_text('{"question_id": 1, "text": "a"}\n{"question_id": 2\n')
    with pytest.raises(DataError, match=r"merge\.jsonl, line 2"):
        vqa_files.read_predictions(path)
    path.write_text('{"question_id": 1}\n')
    with pytest.raises(DataError, match="line 1: no id or no text"):
        vqa_files.read_predictions(path)


def test_annotation_without_answer_or_with_repeated_id_is_named(tmp_path):
    path = tmp_path / "test.json"
    path.write_text(json.dumps([{"question_id": 1, "answer": "a"}, {"question_id": 2}]))
    with pytest.raises(DataError, match=r"record 1: the record has no answer"):
        vqa_files.read_annotations(path, "vqav2")
    path.write_text(json.dumps([{"question_id": 1, "answer": "a"}, {"question_id": "1", "answer": "a"}]))
    with pytest.raises(DataError, match="occurs twice"):
        vqa_files.read_annotations(path, "vqav2")


def test_box_where_a_letter_was_asked_is_superficial_and_a_wrong_letter_essential():
    records = [record(p, {"letter": "A", "choices": 4}) for p in ("A", "B", "[0.1,0.2,0.3,0.4]", "a cat")]
    split = split_errors(records, "scienceqa")
    assert split == {"format_compliance": 50, "superficial": 50, "essential": 25}


def test_partly_right_answer_is_split_by_its_value():
    answers = ["stop"] * 2 + [f"x{i}" for i in range(8)]
    split = split_errors([record("stop", answers), record("I think that it says stop there", answers)], "textvqa")
    assert split["essential"] == pytest.approx(20) and split["superficial"] == pytest.approx(50)


@pytest.mark.parametrize(
    ("form", "fits", "fails"),
    [
        ("letter", "B B. C", "F yes AB"),
        ("yes_no", "Yes no. NO", "maybe true"),
        ("box", "[0.1,0.2,0.3,0.4] 0.1,0.2,0.3,0.4", "[1.1,0.2,1.3,0.4] box"),
    ],
)
def test_forms_accept_their_answers_and_refuse_others(form, fits, fails):
    assert all(FORMS[form](text) for text in fits.split(" "))
    assert not any(FORMS[form](text) for text in fails.split(" "))


def test_phrase_is_neither_a_letter_nor_a_box_nor_a_sentence():
    phrase = validator("phrase")
    assert phrase("red car") and phrase("7")
    assert not any(map(phrase, ["", "B", "[0.1,0.2,0.3,0.4]", "this is a sentence of seven words"]))
