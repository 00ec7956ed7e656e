"""Our ScienceQA scorer on the published predictions of LLaVA-1.5-13B."""

import gzip
import json
import re
from pathlib import Path

import pytest

from perdure.metrics import vqa, vqa_files

PACK = Path("../shared/data/coin_mini/llava_eval")


def read(name):
    if not (PACK / name).is_file():
        pytest.skip(f"the data pack coin_mini is not under {PACK.parent}")
    return json.loads(gzip.open(PACK / name, "rt", encoding="utf-8").read())


def test_scienceqa_score_of_4241_real_predictions_is_the_published_one():
    outputs = read("scienceqa_llava13b_result.json.gz")
    questions = read("scienceqa_test_CQM-A.json.gz")
    predictions = [{"id": i, "text": text, "prompt": ""} for i, text in outputs["outputs"].items()]
    targets = {q["id"]: _target(q) for q in questions}
    records = vqa_files.join(predictions, targets, "scienceqa")
    scores = vqa.score_records(records, "scienceqa")
    assert (scores["correct"], scores["samples"], round(scores["accuracy"], 2)) == (3155, 4241, 74.39)
    rows = {row["question_id"]: row for row in vqa.science_qa_rows(records)}
    assert {i: row["index"] for i, row in rows.items()} == outputs["results"]


def test_every_real_prediction_is_judged_as_published():
    published = read("scienceqa_llava13b_output.json.gz")
    questions = {q["id"]: q for q in read("scienceqa_test_CQM-A.json.gz")}
    for verdict in ("correct", "incorrect"):
        records = [
            {
                "id": row["question_id"],
                "prediction": row["pred"],
                "target": _target(questions[row["question_id"]]),
            }
            for row in published[verdict]
        ]
        rows = vqa.science_qa_rows(records)
        assert all(row["correct"] == (verdict == "correct") for row in rows)
        assert [r["parsed_ans"] for r in rows] == [r["parsed_ans"] for r in published[verdict]]


def _target(question):
    asked, answer = (message["value"] for message in question["conversations"])
    return {"letter": answer.strip(), "choices": len(re.findall(r"^[A-E]\. ", asked, re.M))}
