"""Scorers of UCIT, MLLM-DCL and MLLM-ACL, by hand."""

import pytest

from perdure.errors import DataError, MissingExtra
from perdure.metrics import caption_words, vqa
from perdure.metrics.stream_scorers import science_target
from perdure.metrics.vqa_files import caption_references


def value(scorer, prediction, target, *, official=False):
    record = {"id": "q", "prediction": prediction, "target": target}
    (found,) = vqa.record_values([record], scorer, official=official)
    return found


@pytest.mark.parametrize(
    ("scorer", "prediction", "target", "ours", "published"),
    [
        ("equal", "Cat", "CAT", 1, 1),
        ("equal", "cat ", "cat", 0, 0),
        ("contains", "It is a Rib.", "rib", 1, 1),
        ("contains", "Unanswerable: rib", "rib", 1, 0),
        ("contains_word", "There are 21 cars", "1", 0, 1),  # "1 " is in "21 cars": the published defect
        ("contains_word", "21", "1", 0, 1),
        ("contains_word", "a bridge, wide", "Bridge.", 1, 1),
        ("contains_word", "abridged", "bridge", 0, 1),
        ("contains_word", "on the left side", "left side", 1, 1),
        ("loose_letter", "b. ", "B", 1, 1),
        ("loose_letter", "B no", "B", 0, 0),
        ("squeezed", "The box:\n 1 2.", "box:12", 1, 1),
        ("squeezed", "2", "12", 0, 0),
        ("ocrbench", "It says\nSTOP now", {"answers": ["stop", "halt"], "type": "Scene Text"}, 1, 1),
        ("ocrbench", "x ^2 + Y", {"answers": ["x^2+Y"], "type": "Handwritten Mathematical Expression"}, 1, 1),
        ("ocrbench", "x^2+y", {"answers": ["x^2+Y"], "type": "Handwritten Mathematical Expression"}, 0, 0),
        ("science", "Leaf", {"answer": "leaf", "kind": "equal"}, 1, 1),
        ("science", "In Ohio it is", {"answer": "ohio", "kind": "contains"}, 1, 1),
        ("science", "Utah,Ohio", {"answer": "Ohio, Utah", "kind": "states"}, 1, 0.5),
        ("science", "Maine", {"answer": "Ohio, Utah", "kind": "states"}, 0, 0),
    ],
)
def test_values_by_hand(scorer, prediction, target, ours, published):
    assert value(scorer, prediction, target) == ours
    assert value(scorer, prediction, target, official=True) == published


def test_science_goes_by_the_pictures_source_and_the_question():
    assert science_target("a", "images/AI2D_1.png", "Which?") == {"answer": "a", "kind": "equal"}
    assert science_target("a", "map.png", "Which states lie there?")["kind"] == "states"
    assert science_target("a", "map.png", "What is it?")["kind"] == "contains"


def test_captions_are_scored_as_a_set_by_cider_or_with_java_by_the_mean_of_seven(monkeypatch):
    texts = ["a red car on the road", "two dogs play in snow", "a man rides a wave"]
    rows = [{"id": str(i), "prediction": t, "target": [t, f"{t} today"]} for i, t in enumerate(texts)]
    right = vqa.score_records(rows, "caption")
    mixed = vqa.score_records([{**r, "prediction": texts[i - 1]} for i, r in enumerate(rows)], "caption")
    assert right["accuracy"] == right["cider"] > 200
    assert mixed["accuracy"] < 20
    assert right["bleu_4"] > 99
    assert vqa.record_values(rows, "caption") == [1, 1, 1]
    monkeypatch.setattr(caption_words, "has_java", lambda: False)
    with pytest.raises(MissingExtra, match="METEOR needs"):
        vqa.score_records(rows, "caption", official=True)


def test_references_go_by_id_or_as_published_by_place(tmp_path):
    file = tmp_path / "captions.json"
    file.write_text(
        '{"images": [], "annotations": [{"image_id": 10, "caption": "b"}, {"image_id": 2, "caption": "a"}, '
        '{"image_id": 2, "caption": "A"}]}'
    )
    assert caption_references(file, ["10", "2"]) == {"10": ["b"], "2": ["a", "A"]}
    assert caption_references(file, ["first", "second"]) == {"first": ["a", "A"], "second": ["b"]}
    with pytest.raises(DataError, match=r"captions of 2 images.*3, one for each question"):
        caption_references(file, ["a", "b", "c"])
    file.write_text("[]")
    with pytest.raises(DataError, match="these are no captions"):
        caption_references(file, [])
