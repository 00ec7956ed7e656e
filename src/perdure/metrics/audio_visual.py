"""Records and metrics of the four audio-visual kinds: localized events, parsed videos, masks, answers.

Knows scores, probabilities and mask logits of a batch and the targets of `perdure.data.audio_visual`. Does not know
models. A record holds all that its metrics and figures need: class indices by segment, runs of segments, an IoU a
frame, names of the classes that occur.
All metrics are in percent. A run is ``[class, from, to)`` in segments; the predictions of a parsed video are scores
and, for both modalities, presence as 0 and 1, all ``[videos segments classes]``.

| kind | target | prediction |
|---|---|---|
| localize-events | a class index a segment | scores ``[videos segments classes]`` |
| parse-video | ``{"labels": [class], "audio": runs, "visual": runs}`` | ``{"scores", "audio", "visual"}`` |
| segment | a mask (path or array) a frame | logits ``[videos frames height width]`` |
| answer | ``{"answer": index, "type": [modality, kind]}`` | scores ``[videos answers]`` |
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from perdure.errors import DataError
from perdure.metrics.masks import best_f_score, frame_iou, read_mask, run_lengths
from perdure.metrics.parsing import Maps, event_scores, events_of, presence_map, segment_scores
from perdure.types import Example, Query

Record = dict[str, Any]
TYPES = {
    "Audio": ("Counting", "Comparative"),
    "Visual": ("Counting", "Location"),
    "Audio-Visual": ("Existential", "Counting", "Location", "Comparative", "Temporal"),
}
"""Kinds of question by modality."""


def records(predictions: Any, examples: Sequence[Example], query: Query) -> list[Record]:
    """One record an example; with where its frames are, if they are files, for those who want to look."""
    make = {"localize-events": _localized, "parse-video": _parsed, "segment": _segmented, "answer": _answered}
    rows = make[query.kind](predictions, examples, query)
    return [
        {"id": example.id, "kind": query.kind, **row, **_frames(example)}
        for example, row in zip(examples, rows, strict=True)
    ]


# -- metrics ------------------------------------------------------------------------------------------------


def score(records: Iterable[Record]) -> float:
    """The headline of each kind: segment accuracy, segment-level Type@AV, mIoU, or accuracy of answers."""
    return _headline(records, parsing=lambda rows: segment_f1(rows)["Type@AV"])


def score_official(records: Iterable[Record]) -> float:
    """As `score`, but top-1 for parsed videos, as the published code of PHP has it."""
    return _headline(records, parsing=llp_top1_official)


def segment_accuracy(records: Iterable[Record]) -> float:
    """Segments whose highest score is their class, over all segments of all videos."""
    rows = list(records)
    right = sum(p == t for row in rows for p, t in zip(row["prediction"], row["target"], strict=True))
    return 100 * right / max(sum(len(row["target"]) for row in rows), 1)


def llp_top1_official(records: Iterable[Record]) -> float:
    """Videos whose highest mean score is their lowest positive class: what PHP's code logs as "F1 score"."""
    rows = list(records)
    return 100 * sum(row["prediction"] == min(row["labels"], default=0) for row in rows) / max(len(rows), 1)


def segment_f1(records: Iterable[Record]) -> dict[str, float]:
    """F1 of segments, mean over videos: audio, visual, audio-visual, their mean (Type@AV), and Event@AV."""
    return _parsing(records, segment_scores)


def event_f1(records: Iterable[Record]) -> dict[str, float]:
    """F1 of events (runs of segments; a hit has IoU 0.5), mean over videos, as `segment_f1`."""
    return _parsing(records, event_scores)


def mask_iou(records: Iterable[Record]) -> float:
    """Mean over videos of the mean IoU of their frames."""
    rows = list(records)
    return 100 * sum(sum(row["iou"]) / len(row["iou"]) for row in rows) / max(len(rows), 1)


def mask_f_score(records: Iterable[Record]) -> float:
    """Mean over videos of the best F-score (beta squared 0.3) over 255 thresholds."""
    rows = list(records)
    return 100 * sum(row["f_score"] for row in rows) / max(len(rows), 1)


def avqa_accuracy(records: Iterable[Record]) -> float:
    """Questions that are answered as the truth has it."""
    rows = list(records)
    return 100 * sum(row["prediction"] == row["target"] for row in rows) / max(len(rows), 1)


def avqa_by_type(records: Iterable[Record]) -> dict[str, float | None]:
    """Accuracy of each type of question, and of each modality over all its questions; None where there is none."""
    rows = list(records)
    table: dict[str, float | None] = {}
    for modality, kinds in TYPES.items():
        of_modality = [row for row in rows if row["type"][0] == modality]
        for kind in kinds:
            table[f"{modality} {kind}"] = _accuracy_or_none([r for r in of_modality if r["type"][1] == kind])
        table[modality] = _accuracy_or_none(of_modality)
    return table


def _parsing(records: Iterable[Record], scores: Any) -> dict[str, float]:
    rows = [
        scores(*({m: _map(row[part][m], row) for m in ("audio", "visual")} for part in ("predicted", "true")))
        for row in records
    ]
    mean = {name: 100 * sum(row[name] for row in rows) / max(len(rows), 1) for name in ("A", "V", "AV", "Event@AV")}
    return mean | {"Type@AV": (mean["A"] + mean["V"] + mean["AV"]) / 3}


def _map(events: Sequence[Sequence[int]], row: Record) -> Maps:
    return presence_map(events, classes=row["classes"], segments=row["segments"])


def _headline(records: Iterable[Record], *, parsing: Any) -> float:
    rows = list(records)
    by_kind = {
        "localize-events": segment_accuracy,
        "parse-video": parsing,
        "segment": mask_iou,
        "answer": avqa_accuracy,
    }
    return by_kind[rows[0]["kind"]](rows) if rows else 0.0


def _accuracy_or_none(rows: list[Record]) -> float | None:
    return avqa_accuracy(rows) if rows else None


# -- records ------------------------------------------------------------------------------------------------


def _frames(example: Example) -> Record:
    frames = example.inputs.get("frames", ())
    on_disk = all(isinstance(frame, str | os.PathLike) for frame in frames)
    return {"frames": [os.fspath(frame) for frame in frames]} if len(frames) and on_disk else {}


def _names(labels: Iterable[int], query: Query) -> dict[str, str]:
    """Names of these classes by label (text, as JSON's keys are)."""
    return {str(label): query.candidates[label - query.offset] for label in sorted(set(labels))}


def _localized(predictions: Tensor, examples: Sequence[Example], query: Query) -> list[Record]:
    chosen = (predictions.argmax(2) + query.offset).tolist()
    return [
        {"prediction": row, "target": list(example.target), "names": _names([*row, *example.target], query)}
        for row, example in zip(chosen, examples)
    ]


def _parsed(predictions: Mapping[str, Tensor], examples: Sequence[Example], query: Query) -> list[Record]:
    scores = predictions["scores"]
    best = (scores.mean(1).argmax(1) + query.offset).tolist()
    present = {m: predictions[m].transpose(1, 2).bool().cpu().numpy() for m in ("audio", "visual")}
    rows = [
        {
            "prediction": best[i],
            "labels": sorted(example.target["labels"]),
            "predicted": {m: events_of(present[m][i]) for m in present},
            "true": {m: _columns(example.target.get(m, ()), query) for m in present},
            "classes": len(query.candidates),
            "segments": scores.shape[1],
        }
        for i, example in enumerate(examples)
    ]
    return [row | {"names": {str(c): query.candidates[c] for c in _classes_in(row)}} for row in rows]


def _columns(events: Sequence[Sequence[int]], query: Query) -> list[list[int]]:
    """Runs of classes as runs of the query's columns, which predictions come in."""
    return [[int(label) - query.offset, int(begin), int(end)] for label, begin, end in events]


def _classes_in(row: Record) -> list[int]:
    """Columns of the classes that a video's prediction or truth names."""
    return sorted({run[0] for part in ("predicted", "true") for runs in row[part].values() for run in runs})


def _segmented(predictions: Tensor, examples: Sequence[Example], query: Query) -> list[Record]:
    rows = []
    for logits, example in zip(predictions.float().cpu(), examples):
        masks = [read_mask(mask, where=example.id) for mask in example.target]
        if {tuple(mask.shape) for mask in masks} != {tuple(logits.shape[1:])}:
            found = ", ".join(sorted({"x".join(map(str, mask.shape)) for mask in masks}))
            expected = "masks of {} x {} pixels".format(*logits.shape[1:])
            raise DataError(f"its masks are {found}", where=example.id, expected=expected)
        truth = torch.stack(masks)
        logits = logits[: len(truth)]
        rows.append(
            {
                "iou": frame_iou(logits, truth).tolist(),
                "f_score": best_f_score(logits, truth),
                "size": list(truth.shape[1:]),
                "prediction": [run_lengths(mask) for mask in logits > 0],
                "target": [run_lengths(mask) for mask in truth],
            }
        )
    return rows


def _answered(predictions: Tensor, examples: Sequence[Example], query: Query) -> list[Record]:
    chosen = predictions.argmax(1).tolist()
    return [
        {
            "prediction": query.candidates[answer],
            "target": query.candidates[example.target["answer"] - query.offset],
            "type": list(example.target.get("type", ("", ""))),
        }
        | ({"question": example.inputs["question_text"]} if "question_text" in example.inputs else {})
        for answer, example in zip(chosen, examples)
    ]
