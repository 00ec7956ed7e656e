"""Records of generated answers, and the metrics that read them."""

from perdure import metrics
from perdure.types import Example, Query


def examples(*answers, scorer="vqav2", form="phrase"):
    targets = [{"answer": a, "scorer": scorer, "form": form, "official": False} for a in answers]
    return [Example(id=str(i), inputs={"text": f"q{i}"}, target=t) for i, t in enumerate(targets)]


def test_records_hold_all_that_their_scores_need():
    made = metrics.records(
        "instruct", ["Cat", "a very long answer that is no phrase"], examples("cat", "dog"), Query(kind="instruct")
    )
    assert made[0] == {
        "id": "0",
        "prediction": "Cat",
        "target": "cat",
        "question": "q0",
        "has_image": False,
        "scorer": "vqav2",
        "form": "phrase",
        "official": False,
    }
    values = {
        name: metrics.compute(name, made)
        for name in ("answer_accuracy", "format_compliance", "format_errors", "superficial", "essential")
    }
    assert values == {
        "answer_accuracy": 50,
        "format_compliance": 50,
        "format_errors": 50,
        "superficial": 50,
        "essential": 0,
    }
    assert metrics.compute("answer_scores", made)["samples"] == 2


def test_scienceqa_image_accuracy_reads_the_records_images():
    rows = metrics.records(
        "instruct",
        ["A", "B"],
        examples({"letter": "A", "choices": 2}, {"letter": "A", "choices": 2}, scorer="scienceqa", form="letter"),
        Query(kind="instruct"),
    )
    rows[1]["has_image"] = True
    assert metrics.compute("answer_scores", rows)["image_accuracy"] == 0


def test_no_records_give_no_number():
    names = ("answer_accuracy", "format_compliance", "format_errors", "superficial", "essential")
    assert [metrics.compute(name, []) for name in names] == [None] * 5
