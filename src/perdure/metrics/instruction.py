"""Records and metrics of instruction tasks: one generated text, scored by what the example says of its task.

Knows generated texts and the targets of `perdure.data.instruction`. Does not know models or files. A record holds all
that its score needs: ``{"id", "prediction", "target", "question", "has_image", "scorer", "form", "official"}``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from perdure.errors import DataError
from perdure.metrics.answer_format import split_errors
from perdure.metrics.vqa import score_records
from perdure.types import Example, Query

Record = dict[str, Any]


def records(predictions: Sequence[str], examples: Sequence[Example], query: Query) -> list[Record]:
    """One record an example, from its generated answer."""
    assert len(predictions) == len(examples)
    return [
        {
            "id": example.id,
            "prediction": text,
            "target": example.target["answer"],
            "question": example.inputs["text"],
            "has_image": any(example.inputs.get(name) is not None for name in ("image", "video")),
            **{name: example.target[name] for name in ("scorer", "form", "official")},
        }
        for text, example in zip(predictions, examples)
    ]


def answer_accuracy(records: Iterable[Record]) -> float | None:
    """Right answers by the task's scorer, in percent (CoIN's truth alignment); None of no records, as all of these."""
    return answer_scores(records).get("accuracy")


def answer_scores(records: Iterable[Record]) -> dict[str, Any]:
    """All that the task's scorer says: accuracy, and for ScienceQA and GQA their sub-scores."""
    rows = list(records)
    return score_records(rows, rows[0]["scorer"], official=rows[0]["official"]) if rows else {}


def judged_accuracy(records: Iterable[Record]) -> float | None:
    """Mean score in percent with a judge's help; DataError if the records were not judged yet."""
    rows = list(records)
    if missing := [r["id"] for r in rows if r.get("judged") is None]:
        raise DataError(
            "the record was not judged",
            where=str(missing[0]),
            todo="It needs a chat model: perdure prepare judge PREDICTIONS --endpoint URL --model NAME",
        )
    return 100 * sum(r["judged"] for r in rows) / len(rows) if rows else None


def format_compliance(records: Iterable[Record]) -> float | None:
    """Answers in the form that the question asks for, in percent."""
    return _split(records)["format_compliance"]


def format_errors(records: Iterable[Record]) -> float | None:
    """Answers in another form than the question asks for, right ones included, in percent."""
    compliance = format_compliance(records)
    return None if compliance is None else 100 - compliance


def superficial(records: Iterable[Record]) -> float | None:
    """Wrong answers in a wrong form, in percent of all."""
    return _split(records)["superficial"]


def essential(records: Iterable[Record]) -> float | None:
    """Wrong answers in the right form, in percent of all."""
    return _split(records)["essential"]


def _split(records: Iterable[Record]) -> dict[str, float | None]:
    rows = list(records)
    first = rows[0] if rows else {"scorer": "exact", "form": "any", "official": False}
    return split_errors(rows, first["scorer"], first["form"], official=first["official"])
