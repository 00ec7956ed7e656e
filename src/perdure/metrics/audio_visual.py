"""Records and metrics of the four audio-visual kinds: localized events, parsed videos, masks, answers.

Knows scores, probabilities and mask logits of a batch and the targets of `perdure.data.audio_visual`. Does not know
models. A record holds all that its metrics need: class indices by segment, runs of segments, an IoU a frame, names.
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

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from perdure.errors import DataError
from perdure.images import open_image
from perdure.types import Example, Query

Record = dict[str, Any]
Maps = np.ndarray
"""Presence of events: bool ``[classes segments]``."""
TYPES = {
    "Audio": ("Counting", "Comparative"),
    "Visual": ("Counting", "Location"),
    "Audio-Visual": ("Existential", "Counting", "Location", "Comparative", "Temporal"),
}
"""Kinds of question by modality."""
IOU_OF_A_HIT = 0.5
THRESHOLDS = 255
BETA_SQUARED = 0.3


def records(predictions: Any, examples: Sequence[Example], query: Query) -> list[Record]:
    """One record an example."""
    make = {"localize-events": _localized, "parse-video": _parsed, "segment": _segmented, "answer": _answered}
    rows = make[query.kind](predictions, examples, query)
    return [{"id": example.id, "kind": query.kind, **row} for example, row in zip(examples, rows, strict=True)]


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


def normalized_mean(matrix: Sequence[Sequence[float | None]]) -> float:
    """Mean over tasks of the last score over the score just after learning, in percent: mixes no units."""
    last = matrix[-1]
    shares = [
        100 * now / own
        for j, now in enumerate(last)
        if now is not None and (own := matrix[j][j])  # a task that scored 0 has nothing to keep
    ]
    return sum(shares) / len(shares) if shares else float("nan")


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


# -- parsed videos ------------------------------------------------------------------------------------------


def segment_scores(predicted: Mapping[str, Maps], truth: Mapping[str, Maps]) -> dict[str, float]:
    """F1 of one video's segments: ``A``, ``V``, ``AV`` and ``Event@AV`` (audio and visual counts together).

    Args:
        predicted: bool ``[classes segments]`` under "audio" and "visual"; `truth`: the same.
    """
    return _scores(predicted, truth, lambda p, t: np.stack([(p & t).sum(1), (p & ~t).sum(1), (~p & t).sum(1)]))


def event_scores(predicted: Mapping[str, Maps], truth: Mapping[str, Maps]) -> dict[str, float]:
    """F1 of one video's events, as `segment_scores`."""
    return _scores(predicted, truth, event_counts)


def event_counts(predicted: Maps, truth: Maps) -> np.ndarray:
    """Hits, false alarms and misses of each class: ``[3 classes]``.

    A predicted run is a hit if its IoU with a true run of the class is at least 0.5; several may hit the same one.
    A true run that none hits is a miss.
    """
    counts = np.zeros((3, len(predicted)))
    for label, (p, t) in enumerate(zip(predicted, truth)):
        found, true = runs(p), runs(t)
        hit = [any(_iou(f, g) >= IOU_OF_A_HIT for g in true) for f in found]
        missed = [g for g in true if not any(_iou(f, g) >= IOU_OF_A_HIT for f in found)]
        counts[:, label] = sum(hit), len(hit) - sum(hit), len(missed)
    return counts


def runs(present: Bool[np.ndarray, " segments"]) -> list[tuple[int, int]]:
    """``(from, to)`` of each maximal run of ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], present.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _scores(predicted: Mapping[str, Maps], truth: Mapping[str, Maps], count: Any) -> dict[str, float]:
    audio, visual = (count(predicted[m], truth[m]) for m in ("audio", "visual"))
    both = count(predicted["audio"] & predicted["visual"], truth["audio"] & truth["visual"])
    parts = {"A": audio, "V": visual, "AV": both, "Event@AV": audio + visual}
    return {name: _f1(counts) for name, counts in parts.items()}


def _f1(counts: Float[np.ndarray, "3 classes"]) -> float:
    """Mean F1 over the classes that are there in prediction or truth; 1 if there are none."""
    hits, alarms, misses = counts
    total = 2 * hits + alarms + misses
    there = total > 0
    return float((2 * hits[there] / total[there]).mean()) if there.any() else 1.0


def _iou(a: tuple[int, int], b: tuple[int, int]) -> float:
    inter = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return inter / (a[1] - a[0] + b[1] - b[0] - inter)


def _parsing(records: Iterable[Record], scores: Any) -> dict[str, float]:
    rows = [
        scores(*({m: _map(row[part][m], row) for m in ("audio", "visual")} for part in ("predicted", "true")))
        for row in records
    ]
    mean = {name: 100 * sum(row[name] for row in rows) / max(len(rows), 1) for name in ("A", "V", "AV", "Event@AV")}
    return mean | {"Type@AV": (mean["A"] + mean["V"] + mean["AV"]) / 3}


def _map(events: Sequence[Sequence[int]], row: Record) -> Maps:
    present = np.zeros((row["classes"], row["segments"]), dtype=bool)
    for label, begin, end in events:
        present[label, begin:end] = True
    return present


def _events(present: Maps) -> list[list[int]]:
    return [[label, begin, end] for label, row in enumerate(present) for begin, end in runs(row)]


# -- masks --------------------------------------------------------------------------------------------------


def frame_iou(
    logits: Float[Tensor, "frames height width"], truth: Bool[Tensor, "frames height width"]
) -> Float[Tensor, " frames"]:
    """IoU of ``sigmoid > 0.5`` with the truth. In a frame without truth: the share of pixels left empty, all or none
    of which count: background pixels that are background over all pixels."""
    predicted = logits > 0
    inter = (predicted & truth).sum((1, 2)).double()
    union = (predicted | truth).sum((1, 2)).double()
    empty = ~truth.flatten(1).any(1)
    pixels = float(truth.shape[1] * truth.shape[2])
    inter = torch.where(empty, (~predicted & ~truth).sum((1, 2)).double(), inter)
    union = torch.where(empty, torch.full_like(union, pixels), union)
    return inter / (union + 1e-7)


def best_f_score(logits: Float[Tensor, "frames height width"], truth: Bool[Tensor, "frames height width"]) -> float:
    """Best of 255 thresholds of the F-score averaged over frames with truth; 0 if no frame has any."""
    curves = [f_curve(p, t)[0] for p, t in zip(logits.sigmoid(), truth) if t.any()]
    return float(torch.stack(curves).mean(0).max()) if curves else 0.0


def f_curve(
    probability: Float[Tensor, "height width"], truth: Bool[Tensor, "height width"]
) -> tuple[Float[Tensor, " thresholds"], Float[Tensor, " thresholds"], Float[Tensor, " thresholds"]]:
    """F-score, precision and recall at each threshold from 0 to 1 (a pixel counts if it reaches it)."""
    thresholds = torch.linspace(0, 1 - 1e-10, THRESHOLDS, device=probability.device)
    inside, everything = (values.sort().values.contiguous() for values in (probability[truth], probability.flatten()))
    hits = len(inside) - torch.searchsorted(inside, thresholds)
    found = len(everything) - torch.searchsorted(everything, thresholds)
    precision, recall = hits / (found + 1e-20), hits / (truth.sum() + 1e-20)
    f = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
    return f.nan_to_num(0.0), precision, recall


def read_mask(value: Any, *, where: str) -> Bool[Tensor, "height width"]:
    """A mask from a path or an array: what is not black."""
    if isinstance(value, np.ndarray | Tensor):
        return torch.as_tensor(np.asarray(value)) > 0
    return torch.from_numpy(np.asarray(open_image(value, where=where)).max(2) > 0)


def run_lengths(mask: Bool[Tensor, "height width"]) -> list[int]:
    """Lengths of runs row by row, beginning with one of zeros."""
    flat = mask.flatten().cpu().numpy().astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0)).tolist()
    return np.diff([0, *edges, len(flat)]).tolist()


# -- records ------------------------------------------------------------------------------------------------


def _localized(predictions: Tensor, examples: Sequence[Example], query: Query) -> list[Record]:
    chosen = (predictions.argmax(2) + query.offset).tolist()
    return [{"prediction": row, "target": list(example.target)} for row, example in zip(chosen, examples)]


def _parsed(predictions: Mapping[str, Tensor], examples: Sequence[Example], query: Query) -> list[Record]:
    scores = predictions["scores"]
    best = (scores.mean(1).argmax(1) + query.offset).tolist()
    present = {m: predictions[m].transpose(1, 2).bool().cpu().numpy() for m in ("audio", "visual")}
    return [
        {
            "prediction": best[i],
            "labels": sorted(example.target["labels"]),
            "predicted": {m: _events(present[m][i]) for m in present},
            "true": {m: [list(map(int, run)) for run in example.target.get(m, ())] for m in present},
            "classes": len(query.candidates),
            "segments": scores.shape[1],
        }
        for i, example in enumerate(examples)
    ]


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
        for answer, example in zip(chosen, examples)
    ]
