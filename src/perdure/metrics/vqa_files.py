"""Saved predictions and annotation files -> the records that `vqa` scores.

Knows upstream's ``merge.jsonl`` and CoIN's annotation layouts. Knows no models and does no scoring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.errors import DataError
from perdure.files.text_files import read_json, read_json_lines


def read_predictions(path: str | Path) -> list[dict[str, Any]]:
    """Prediction lines, ``{"question_id", "text", "prompt"?}`` (upstream) or perdure's own records.

    Raises DataError that names file and line.
    """
    return [_prediction(row, f"{path}, line {number}") for number, row in read_json_lines(Path(path))]


def read_annotations(path: str | Path, scorer: str) -> dict[str, Any]:
    """Targets by question id, in the order of the file.

    A list of CoIN test records, TextVQA's ``{"data": [...]}``, GQA's ``{id: question}``, or, for ScienceQA,
    a folder with ``problems.json`` and ``pid_splits.json``.
    """
    path = Path(path)
    if scorer == "scienceqa" and path.is_dir():
        problems, splits = read_json(path / "problems.json"), read_json(path / "pid_splits.json")
        test = splits.get("test") if isinstance(splits, Mapping) else None
        if not isinstance(problems, Mapping) or not isinstance(test, list) or not all(isinstance(p, str) for p in test):
            expected = 'problems.json: {id: problem}, pid_splits.json: {"test": [id, ...]}'
            raise DataError("these are no files of ScienceQA", where=str(path), expected=expected)
        return {pid: _science_target(problems, pid, path) for pid in test}
    content = read_json(path)
    if scorer == "gqa" and isinstance(content, Mapping):
        return dict(content)
    rows = content["data"] if isinstance(content, Mapping) and "data" in content else content
    if not isinstance(rows, list):
        raise DataError("the annotations are no list", where=str(path), expected="a list of records")
    return _by_id([(r, f"{path}, record {i}") for i, r in enumerate(rows)])


def caption_references(path: Path, questions: Sequence[str]) -> dict[str, list[str]]:
    """Reference captions of questions, from a file in COCO's form (``images``, ``annotations``).

    Captions belong to the question whose id is the image's; where the ids are others, the i-th question to the image
    with the i-th smallest number, as the published code pairs them.

    Raises:
        DataError: another form, or as many images as questions neither by id nor by number.
    """
    content = read_json(path)
    rows = content.get("annotations") if isinstance(content, Mapping) else None
    sound = isinstance(rows, list) and all(
        isinstance(r, Mapping) and isinstance(r.get("caption"), str) and "image_id" in r for r in rows
    )
    if not sound:
        raise DataError(
            "these are no captions", where=str(path), expected='{"annotations": [{"image_id", "caption"}, ...]}'
        )
    found: dict[str, list[str]] = {}
    for row in rows or ():
        found.setdefault(str(row["image_id"]), []).append(row["caption"])
    if set(questions) <= set(found):
        return {name: found[name] for name in questions}
    if len(found) != len(questions):
        raise DataError(
            f"captions of {len(found)} images", where=str(path), expected=f"{len(questions)}, one for each question"
        )
    return dict(zip(questions, (found[i] for i in sorted(found, key=_number))))


def _number(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (0, name)


def join(
    predictions: Sequence[Mapping[str, Any]],
    targets: Mapping[str, Any],
    scorer: str,
    *,
    official: bool = False,
    where: str = "",
) -> list[dict[str, Any]]:
    """One record a question (None where there is no prediction), in the order of the annotations.

    Raises DataError for predictions of unknown or repeated ids, and names them and `where` they were read.
    Officially: ImageNet pairs the i-th line with the i-th annotation whatever the ids; ScienceQA takes every
    question, and keeps unknown ids without a target; the others give one record a prediction line (GQA: the last
    line of an id).
    """
    if official and scorer == "imagenet":
        if len(predictions) > len(targets):
            raise DataError(f"{len(predictions)} predictions for {len(targets)} annotations")
        pairs = zip(predictions, targets.items())
        return [_record(p["id"], p, target) for p, (_, target) in pairs]
    if not official:
        _refuse_repeated(predictions, where)
    unknown = [p["id"] for p in predictions if p["id"] not in targets]
    if unknown and not (official and scorer == "scienceqa"):
        raise DataError(
            f"predictions for {len(unknown)} unknown ids: {_some(unknown)}",
            where=where,
            expected=f"ids of the annotations, such as {_some(list(targets)[:3])}",
            todo="Give the annotations that the predictions were made for, or remove these lines.",
        )
    by_id = {p["id"]: p for p in predictions}
    if official and scorer == "gqa":
        return [_record(i, p, targets[i]) for i, p in by_id.items()]
    if official and scorer != "scienceqa":
        return [_record(p["id"], p, targets[p["id"]]) for p in predictions]
    known = [_record(i, by_id.get(i), target) for i, target in targets.items()]
    return known + [_record(i, by_id[i], None) for i in dict.fromkeys(unknown)]


def _record(identity: str, prediction: Mapping[str, Any] | None, target: Any) -> dict[str, Any]:
    prompt = "Unknown" if prediction is None else prediction.get("prompt", "")
    text = None if prediction is None else prediction["text"]
    return {"id": identity, "prediction": text, "target": target, "question": prompt}


def _prediction(row: Any, where: str) -> dict[str, Any]:
    identity = row.get("question_id", row.get("id")) if isinstance(row, Mapping) else None
    text = row.get("text", row.get("prediction")) if isinstance(row, Mapping) else None
    if identity is None or not isinstance(text, str):
        raise DataError("no id or no text", where=where, expected='{"question_id": ..., "text": "..."}')
    return {"id": str(identity), "text": text, "prompt": row.get("prompt", "")}


def _science_target(problems: Mapping[str, Any], pid: str, folder: Path) -> dict[str, Any]:
    if pid not in problems:
        raise DataError(f"question {pid} of pid_splits.json is not in problems.json", where=str(folder))
    problem = problems[pid]
    answer, choices = (problem.get("answer"), problem.get("choices")) if isinstance(problem, Mapping) else (None, None)
    if not isinstance(choices, list) or not isinstance(answer, int) or not 0 <= answer < min(len(choices), 5):
        expected = '{"answer": number of a choice from 0, "choices": [...]}'
        raise DataError(f"question {pid} has no answer", where=str(folder / "problems.json"), expected=expected)
    return {"letter": "ABCDE"[problem["answer"]], "choices": len(problem["choices"])}


def _by_id(rows: list[tuple[Any, str]]) -> dict[str, Any]:
    targets: dict[str, Any] = {}
    for row, where in rows:
        if not isinstance(row, Mapping) or "question_id" not in row:
            raise DataError("the record has no question_id", where=where)
        identity = str(row["question_id"])
        if identity in targets:
            raise DataError(f"question_id {identity} occurs twice", where=where)
        if "answer_bbox" in row:
            targets[identity] = {"box": row["answer_bbox"], "size": row.get("size", (1, 1))}
        elif "answers" in row:
            targets[identity] = row["answers"]
        elif "answer" in row:
            targets[identity] = row["answer"]
        else:
            raise DataError("the record has no answer", where=where, expected="answer, answers or answer_bbox")
    return targets


def _refuse_repeated(predictions: Sequence[Mapping[str, Any]], where: str) -> None:
    repeated = [i for i, n in Counter(p["id"] for p in predictions).items() if n > 1]
    if repeated:
        raise DataError(
            f"{len(repeated)} ids are predicted more than once: {_some(repeated)}",
            where=where,
            expected="one line an id",
            todo="Remove the lines that do not count.",
        )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:10]) + (", ..." if len(ids) > 10 else "")
