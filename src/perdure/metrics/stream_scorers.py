"""Scorers of instruction streams beside CoIN: UCIT, MLLM-DCL and MLLM-ACL.

Knows how one generated text is compared with one target, and a task's captions with all their references. Knows no
files and no models. `official=True` repeats the published comparison with its defects, which each function names.

Sources: HiDe-LLaVA (Guo et al., ACL 2025) for UCIT; MLLM-CL (Zhao et al. 2025) for the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def equal_value(prediction: str, answer: str) -> float:
    """UCIT: the same in capitals; nothing is stripped."""
    return float(prediction.upper() == answer.upper())


def contains_value(prediction: str, answer: str, *, official: bool = False) -> float:
    """Med: the answer is in the prediction, in any case. Officially never where that holds "Unanswerable"."""
    if official and "Unanswerable" in prediction:
        return 0.0
    return float(answer.lower() in prediction.lower())


def contains_word_value(prediction: str, answer: str, *, official: bool = False) -> float:
    """RS, AD: the answer is in the prediction as whole words, in any case.

    Officially an answer of one word must have a blank, a period or a comma on one side, or be within a prediction of
    one word: "1" is in "there are 21 cars". An answer of several words may be anywhere.
    """
    mine, truth = prediction.lower(), answer.lower()
    if not official:
        return float(re.search(rf"(?<!\w){re.escape(truth.rstrip('.'))}(?!\w)", mine) is not None)
    if "Unanswerable" in prediction:
        return 0.0
    if " " in truth:
        return float(truth in mine)
    truth = truth.replace(".", "")
    if " " not in mine:
        return float(truth in mine)
    return float(any(form in mine for form in (f" {truth}", f"{truth} ", f"{truth}.", f"{truth},")))


def science_value(prediction: str, target: Any, *, official: bool = False) -> float:
    """Sci: pictures of AI2D, TQA, VQA and SciVerse ask for the answer itself; maps (MapQA) for lists of states, of
    which the share that is named counts, or for something that the prediction contains.

    Target: ``{"answer", "kind": "equal" | "states" | "contains"}``, or an answer that is to be equal. Officially the
    states of a list keep their blanks, so that "Ohio, Utah" holds " Utah".
    """
    answer, kind = (target["answer"], target["kind"]) if isinstance(target, Mapping) else (target, "equal")
    mine, truth = prediction.lower(), str(answer).lower()
    if kind == "states":
        parts = [{p if official else p.strip() for p in text.split(",")} for text in (truth, mine)]
        return len(parts[0] & parts[1]) / len(parts[0])
    return float(truth in mine if kind == "contains" else mine == truth)


def science_target(answer: str, image: str, question: str) -> dict[str, str]:
    """The target of `science_value`, by the name of the image's file and the question."""
    name = image.replace("\\", "/").rpartition("/")[2]
    if name.startswith(("AI2D_", "TQA_", "VQA_", "SciVerse_")):
        return {"answer": answer, "kind": "equal"}
    return {"answer": answer, "kind": "states" if "Which states" in question else "contains"}


def loose_letter_value(prediction: str, answer: str) -> float:
    """Fin: the same but for blanks and periods, in any case."""
    return float(prediction.replace(" ", "").replace(".", "").lower() == answer.lower())


def squeezed_value(prediction: str, answer: str) -> float:
    """VP: the answer is in the prediction, without blanks, line breaks and periods on both sides, in any case."""
    mine, truth = (re.sub(r"[ \n.]", "", text).lower() for text in (prediction, answer))
    return float(truth in mine)


def ocr_value(prediction: str, target: Any) -> float:
    """OCR (OCRBench): one of the answers is in the prediction, in any case. Handwritten formulas: without blanks, and
    case counts. Target: ``{"answers": [...], "type": category}``, an answer, or several."""
    answers, kind = (target["answers"], target.get("type", "")) if isinstance(target, Mapping) else (target, "")
    answers = [answers] if isinstance(answers, str) else answers
    if "handwritten math" in kind.lower():
        bare = re.sub(r"\s", "", prediction)
        return float(any(re.sub(r"\s", "", answer) in bare for answer in answers))
    mine = prediction.lower().strip().replace("\n", " ")
    return float(any(answer.lower().strip().replace("\n", " ") in mine for answer in answers))


def caption_value(prediction: str, references: Sequence[str]) -> float:
    """One caption's ROUGE-L, which stands for it where single answers are split into right and wrong."""
    from perdure.metrics import captioning  # brings numpy

    found = captioning.rouge_l([{"id": "", "caption": prediction, "references": list(references)}])
    return (found or 0.0) / 100


def captions(records: Sequence[Record], official: bool = False) -> dict[str, Any]:
    """A task of captions. ``accuracy`` is CIDEr-D times 100, which no bound has; officially the mean of BLEU-1 to 4,
    METEOR, ROUGE-L and CIDEr-D, each times 100, for which METEOR needs Java (MissingExtra without)."""
    from perdure.metrics import caption_words, captioning

    if official:
        caption_words.require("METEOR")
    rows = [
        {"id": r["id"], "caption": r.get("prediction") or "", "references": list(r["target"])}
        for r in records
        if r.get("target")
    ]
    table = captioning.caption_scores(rows) if rows else {}
    chosen = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider")
    found = [table.get(name) for name in chosen] if official else [table.get("cider")]
    known = [value for value in found if value is not None]
    mean = sum(known) / len(known) if known and len(known) == len(found) else None
    return {"accuracy": mean, "correct": None, "samples": len(rows), **table}
