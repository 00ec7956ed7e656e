"""Answers to questions about images: the eight scorers of the CoIN benchmark, and a table of all scorers.

Knows how one generated text is compared with one target. Knows no files (`vqa_files` joins saved predictions
with annotations) and no models. A record has ``id``, ``prediction`` (text, or None where there is none) and
``target``; `official=True` repeats the published scorers with their defects, which each function names.

Sources: CoIN (arXiv 2403.08350), SEFE (arXiv 2505.02486), GQA (arXiv 1902.09506), TextVQA (arXiv 1904.08920).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from perdure.errors import DataError
from perdure.metrics import stream_scorers as streams
from perdure.metrics.vqa_text import normalize_answer

Record = Mapping[str, Any]
Scores = dict[str, Any]


def score_records(records: Sequence[Record], scorer: str, *, official: bool = False) -> Scores:
    """Accuracy in percent of a set of records by one of `SCORERS`, with the scorer's own sub-scores.

    Returns at least ``{"accuracy", "correct", "samples"}``; an accuracy over no records is None.
    """
    return _known(scorer)(records, official)


def record_values(records: Sequence[Record], scorer: str, *, official: bool = False) -> list[float]:
    """The score of each record alone, in [0, 1]; the accuracy is their mean unless the scorer says otherwise."""
    _known(scorer)
    return [_value(r, scorer, official) for r in records]


def science_qa(records: Sequence[Record], official: bool = False) -> Scores:
    """Multiple choice by letter. Target: ``"B"`` or ``{"letter": "B", "choices": 4}``.

    The denominator is the number of records. Officially it is the number of distinct predictions: records
    without a prediction are wrong but not counted, and predictions for unknown ids (target None) count.
    """
    rows = science_qa_rows(records)
    hits = sum(row["correct"] for row in rows)
    with_image = [row for row in rows if row["is_multimodal"]]
    count = sum(r.get("prediction") is not None for r in records) if official else len(rows)
    return {
        "accuracy": _percent(hits, count),
        "image_accuracy": _percent(sum(row["correct"] for row in with_image), len(with_image)),
        "correct": int(hits),
        "samples": count,
    }


def science_qa_rows(records: Sequence[Record]) -> list[Scores]:
    """What the official result files hold, one row a known question: parsed letter, choice index (-1: none)."""
    rows = []
    for record in records:
        if record.get("target") is None:
            continue
        letter, choices = _letter_target(record["target"])
        parsed = parse_letter(record.get("prediction") or "")
        index = "ABCDE".index(parsed) if parsed in tuple("ABCDE"[:choices]) else -1
        question = record.get("question", "")
        rows.append(
            {
                "question_id": record["id"],
                "parsed_ans": parsed or "FAILED",
                "ground_truth": letter,
                "index": index,
                "correct": index >= 0 and parsed == letter,
                "is_multimodal": bool(record.get("has_image", "<image>" in question)),
            }
        )
    return rows


def parse_letter(text: str) -> str | None:
    """The option letter that a text answers with, or None: ``B``, ``B. because ...``, ``The answer is B.``

    A letter at the very end of ``The answer is B`` does not match: the published pattern asks for one more
    character.
    """
    if text in tuple("ABCDE"):
        return text
    if len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
        return text[0]
    found = re.findall(r"The answer is ([A-Z]).", text)
    return found[0] if len(found) == 1 else None


def text_vqa_value(prediction: str, answers: Sequence[str], *, official: bool = False) -> float:
    """Soft accuracy of one answer against ten annotators: the mean over annotators of
    ``min(1, agreeing others / 3)``, so k equal answers of ten give .3, .6, .9, then 1.

    Raises DataError unless there are exactly ten answers.
    """
    if len(answers) != 10:
        raise DataError(
            f"a TextVQA question has {len(answers)} reference answers",
            expected="exactly 10, one an annotator",
        )
    given = [normalize_answer(a, official=official) for a in answers]
    mine = normalize_answer(prediction, official=official)
    if mine not in given:
        return 0.0
    agreeing = [sum(other == mine for j, other in enumerate(given) if j != i) for i in range(10)]
    return sum(min(1.0, n / 3) for n in agreeing) / 10


def imagenet_value(prediction: str, answer: str, *, official: bool = False) -> float:
    """Whether the class name is in the answer, or the answer in the class name, as whole words, any case.

    Officially any substring counts, with case; hence an empty prediction is always right, and "a" nearly so.
    """
    if official:
        return float(answer in prediction or prediction in answer)
    mine, truth = _words(prediction), _words(answer)
    return float(bool(mine.strip()) and (truth in mine or mine in truth))


def grounding_value(prediction: str, box: Any, size: Sequence[float] = (1, 1), *, official: bool = False) -> float:
    """Whether the predicted box overlaps the true one with an intersection over union above one half.

    Boxes are ``x1, y1, x2, y2`` in [0, 1] of the square of side ``max(size)``. The official parser drops the
    first and the last character after removing brackets, so "0.52]" is read as 0.5.
    """
    found = _official_box(prediction) if official else parse_box(prediction)
    if found is None:
        return 0.0
    side = max(size)
    return float(box_iou([v * side for v in found], [v * side for v in true_box(box)]) > 0.5)


def parse_box(text: str) -> list[float] | None:
    """Four numbers ``x1 < x2, y1 < y2`` from an answer such as ``[0.1, 0.2, 0.5, 0.6]``; None if it has none."""
    numbers = re.findall(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)", text)
    if len(numbers) != 4:
        return None
    x1, y1, x2, y2 = box = [float(n) for n in numbers]
    return box if x1 < x2 and y1 < y2 else None


def true_box(box: Any) -> list[float]:
    """A reference box from its text or its list. DataError if it is not four numbers within [0, 1]."""
    values = [v.strip() for v in box.strip("[] ").split(",")] if isinstance(box, str) else list(box)
    try:
        numbers = [float(v) for v in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 4 or not all(0 <= v <= 1 for v in numbers):
        raise DataError(f"the reference box is {box!r}", expected="four numbers x1, y1, x2, y2 within [0, 1]")
    return numbers


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union; areas are signed, so an inverted box overlaps nothing."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def ocr_vqa_value(prediction: str, answer: str, *, official: bool = False) -> float:
    """Exact match in any case. Officially a prediction that holds "Unanswerable" is wrong whatever the answer."""
    if official and "Unanswerable" in prediction:
        return 0.0
    return float(prediction.lower() == answer.lower())


def exact_value(prediction: str, answer: str) -> float:
    """VizWiz, VQAv2: exact match in any case; nothing is stripped."""
    return float(prediction.lower() == answer.lower())


def plain_value(prediction: str, answer: str | Sequence[str]) -> float:
    """For data of one's own: equal to the answer, or to one of several, but for case, outer spaces, final period."""
    answers = [answer] if isinstance(answer, str) else answer
    return float(_plain(prediction) in [_plain(a) for a in answers])


def gqa_value(prediction: str, answer: str) -> float:
    """Final periods and case are dropped from the prediction, then it must equal the answer."""
    return float(prediction.rstrip(".").lower() == answer)


def gqa(records: Sequence[Record], official: bool = False) -> Scores:
    """GQA with its groups. Target: the answer, or a question of ``testdev_balanced_questions.json``.

    Only balanced questions count. ``distribution`` is the chi-square distance of answers / 100 (lower is better).
    """
    rows = [(r, _gqa_question(r)) for r in records]
    rows = [(r, q) for r, q in rows if q.get("isBalanced", True)]
    groups: dict[str, dict[Any, list[float]]] = {k: defaultdict(list) for k in GQA_GROUPS}
    for record, question in rows:
        value = gqa_value(record.get("prediction") or "", question["answer"])
        for name, key in GQA_GROUPS.items():
            groups[name][key(question)].append(value)
    values = [gqa_value(r.get("prediction") or "", q["answer"]) for r, q in rows]
    scores: Scores = {"accuracy": _mean_percent(values), "correct": int(sum(values)), "samples": len(values)}
    scores["binary"] = _mean_percent(groups["answer"].get("binary", ()))
    scores["open"] = _mean_percent(groups["answer"].get("open", ()))
    scores["distribution"] = _answer_distance(rows) / 100
    for name in ("structural", "semantic", "steps", "words"):
        found = sorted(groups[name].items(), key=lambda kv: (kv[0] is None, kv[0]))
        scores[name] = {str(k): {"accuracy": _mean_percent(v), "samples": len(v)} for k, v in found}
    return scores


def gqa_steps(question: Mapping[str, Any]) -> int:
    """Reasoning steps of a GQA question: its operations but those that only read the answer off."""
    skipped = ("exist", "query: name", "choose name")
    steps = [f"{s['operation']}: {s['argument']}" for s in question.get("semantic") or ()]
    return sum(not any(word in step for word in skipped) for step in steps)


def _gqa_question(record: Record) -> Mapping[str, Any]:
    target = record["target"]
    return {"answer": target} if isinstance(target, str) else target


GQA_GROUPS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "answer": lambda q: "open" if q.get("types", {}).get("structural") == "query" else "binary",
    "structural": lambda q: q.get("types", {}).get("structural"),
    "semantic": lambda q: q.get("types", {}).get("semantic"),
    "steps": gqa_steps,
    "words": lambda q: len(q.get("question", "").split()),
}


def _answer_distance(rows: Iterable[tuple[Record, Mapping[str, Any]]]) -> float:
    """Chi-square of predicted against true answers in each global group, weighted by the group's questions."""
    truth: dict[str, Counter[str]] = defaultdict(Counter)
    given: dict[str, Counter[str]] = defaultdict(Counter)
    for record, question in rows:
        group = (question.get("groups") or {}).get("global")
        if group is not None:
            truth[group][question["answer"]] += 1
            given[group][(record.get("prediction") or "").rstrip(".").lower()] += 1
    total = sum(sum(c.values()) for c in truth.values())
    weighted = sum(
        sum((given[g][a] - n) ** 2 / n for a, n in answers.items()) * sum(answers.values())
        for g, answers in truth.items()
    )
    return weighted / total if total else 0.0


def _mean_scorer(name: str) -> Callable[[Sequence[Record], bool], Scores]:
    def scorer(records: Sequence[Record], official: bool = False) -> Scores:
        values = [_value(r, name, official) for r in records]
        return {"accuracy": _mean_percent(values), "correct": sum(values), "samples": len(values)}

    return scorer


def _value(record: Record, scorer: str, official: bool) -> float:
    prediction, target = record.get("prediction"), record.get("target")
    if prediction is None or target is None:
        return 0.0
    try:
        return VALUES[scorer](prediction, target, official)
    except DataError as error:
        raise DataError(error.what, where=f"record {record.get('id')}", expected=error.expected) from None


def _grounding(prediction: str, target: Any, official: bool) -> float:
    if isinstance(target, Mapping):
        return grounding_value(prediction, target["box"], target.get("size", (1, 1)), official=official)
    return grounding_value(prediction, target, official=official)


def _science(prediction: str, target: Any, official: bool) -> float:
    letter, choices = _letter_target(target)
    parsed = parse_letter(prediction)
    return float(parsed == letter and parsed in tuple("ABCDE"[:choices]))


def _gqa(prediction: str, target: Any, official: bool) -> float:
    return gqa_value(prediction, target if isinstance(target, str) else target["answer"])


VALUES: dict[str, Callable[[str, Any, bool], float]] = {
    "scienceqa": _science,
    "textvqa": lambda p, t, official: text_vqa_value(p, t, official=official),
    "imagenet": lambda p, t, official: imagenet_value(p, t, official=official),
    "gqa": _gqa,
    "vizwiz": lambda p, t, official: exact_value(p, t),
    "grounding": _grounding,
    "vqav2": lambda p, t, official: exact_value(p, t),
    "ocrvqa": lambda p, t, official: ocr_vqa_value(p, t, official=official),
    "exact": lambda p, t, official: plain_value(p, t),
    "equal": lambda p, t, official: streams.equal_value(p, t),
    "contains": lambda p, t, official: streams.contains_value(p, t, official=official),
    "contains_word": lambda p, t, official: streams.contains_word_value(p, t, official=official),
    "science": lambda p, t, official: streams.science_value(p, t, official=official),
    "loose_letter": lambda p, t, official: streams.loose_letter_value(p, t),
    "squeezed": lambda p, t, official: streams.squeezed_value(p, t),
    "ocrbench": lambda p, t, official: streams.ocr_value(p, t),
    "caption": lambda p, t, official: streams.caption_value(p, t),
}
"""The value of one record by scorer: ``(prediction, target, official) -> [0, 1]``."""

SCORERS: dict[str, Callable[[Sequence[Record], bool], Scores]] = {
    **{name: _mean_scorer(name) for name in VALUES},
    "scienceqa": science_qa,
    "gqa": gqa,
    "caption": streams.captions,
}
"""The eight scorers of CoIN by task, `exact` for tasks of one's own, and those of `stream_scorers`."""


def _known(scorer: str) -> Callable[[Sequence[Record], bool], Scores]:
    if scorer not in SCORERS:
        raise DataError(f"there is no scorer {scorer!r}", expected="one of " + ", ".join(SCORERS))
    return SCORERS[scorer]


def _letter_target(target: Any) -> tuple[str, int]:
    if isinstance(target, Mapping):
        return target["letter"], min(5, int(target.get("choices", 5)))
    return str(target).strip(), 5


def _plain(text: str) -> str:
    return text.strip().rstrip(".").lower()


def _official_box(text: str) -> list[float] | None:
    parts = text.replace("[", "").replace("]", "")[1:-1].split(",")
    try:
        numbers = [float(p) for p in parts]
    except ValueError:
        return None
    return numbers if len(numbers) == 4 else None


def _words(text: str) -> str:
    """Lower-case words between single spaces, with a space at either end."""
    return " " + " ".join(re.findall(r"[^\W_]+", text.lower())) + " "


def _percent(part: float, whole: float) -> float | None:
    return 100 * part / whole if whole else None


def _mean_percent(values: Sequence[float]) -> float | None:
    return _percent(sum(values), len(values))
