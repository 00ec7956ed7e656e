"""Metrics by name, and the records that they read.

Knows which module makes the records of a kind of task, and which function computes a metric. Does not
know models or files; imports neither torch nor numpy, so that `perdure list metrics` is quick.

A kind joins by one line in `RECORDERS`: the module here that has ``records(predictions, examples, query)
-> list[dict]``, JSON-ready. A metric joins by one line in `METRICS`: a function of the same name in that
line's module, from an iterable of records to a float (or to a dict of floats by name).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from perdure.errors import RecipeError
from perdure.settings.suggestions import nearest

if TYPE_CHECKING:
    from perdure.types import Example, Kind, Query

RECORDERS: dict[str, str] = {
    "classify": "classification",
    "instruct": "instruction",
    "localize-events": "audio_visual",
    "parse-video": "audio_visual",
    "segment": "audio_visual",
    "answer": "audio_visual",
    "retrieve": "retrieval",
    "caption": "captioning",
}
"""Kind of task -> module with `records`."""


@dataclass(frozen=True, slots=True)
class Metric:
    """Where a metric is computed, and what a reader should know of its number."""

    module: str
    """Module in this package with a function of the metric's name."""
    unit: str
    """Unit of the number: "%" for all accuracies."""
    direction: Literal["up", "down"]
    """Is more better ("up") or less?"""
    docs: str
    """One line for `perdure list metrics`."""
    needs: str = ""
    """What must be installed beyond the core, if anything."""

    @property
    def arrow(self) -> str:
        return "↑" if self.direction == "up" else "↓"


METRICS: dict[str, Metric] = {
    "accuracy": Metric("classification", "%", "up", "examples whose highest score is the target"),
    "top5": Metric("classification", "%", "up", "examples whose target is among the five highest scores"),
    "per_class_accuracy": Metric("classification", "%", "up", "accuracy of each class, as a table"),
    "mean_per_class": Metric("classification", "%", "up", "mean over classes of their accuracy"),
    "task_accuracy": Metric("task_identity", "%", "up", "examples whose task is found by a method that is not told it"),
    "answer_accuracy": Metric("instruction", "%", "up", "right answers by the task's own scorer"),
    "answer_scores": Metric("instruction", "%", "up", "all that the task's own scorer says, as a table"),
    "format_compliance": Metric("instruction", "%", "up", "answers in the form that the question asks for"),
    "format_errors": Metric("instruction", "%", "down", "answers in another form than the question asks for"),
    "superficial": Metric("instruction", "%", "down", "wrong answers in a wrong form"),
    "essential": Metric("instruction", "%", "down", "wrong answers in the right form"),
    "score": Metric("audio_visual", "%", "up", "the headline of each kind of audio-visual task"),
    "score_official": Metric("audio_visual", "%", "up", "as `score`, with top-1 for parsed videos"),
    "segment_accuracy": Metric("audio_visual", "%", "up", "one-second segments whose event is found"),
    "segment_f1": Metric("audio_visual", "%", "up", "F1 of parsed segments: A, V, AV, Type@AV, Event@AV"),
    "event_f1": Metric("audio_visual", "%", "up", "F1 of parsed events: A, V, AV, Type@AV, Event@AV"),
    "llp_top1_official": Metric("audio_visual", "%", "up", "parsed videos' best class is their first true one"),
    "mask_iou": Metric("audio_visual", "%", "up", "mean IoU of masks of what sounds"),
    "mask_f_score": Metric("audio_visual", "%", "up", "best F-score of masks over 255 thresholds"),
    "avqa_accuracy": Metric("audio_visual", "%", "up", "questions about videos answered rightly"),
    "avqa_by_type": Metric("audio_visual", "%", "up", "the same by type of question, as a table"),
    "recall_1": Metric("retrieval", "%", "up", "queries whose first item is right"),
    "recall_5": Metric("retrieval", "%", "up", "queries with a right item among the first five"),
    "recall_10": Metric("retrieval", "%", "up", "queries with a right item among the first ten"),
    "recall_mean": Metric("retrieval", "%", "up", "mean of recall_1, recall_5 and recall_10"),
    "median_rank": Metric("retrieval", "rank", "down", "median place of the best right item, from 1"),
    "cider": Metric("captioning", "%", "up", "CIDEr-D against the reference captions"),
    "bleu_1": Metric("captioning", "%", "up", "BLEU of the whole set, words"),
    "bleu_4": Metric("captioning", "%", "up", "BLEU of the whole set, up to four words in a row"),
    "rouge_l": Metric("captioning", "%", "up", "ROUGE-L, mean over images"),
    "meteor": Metric("captioning", "%", "up", "METEOR 1.5", needs="[caption], Java"),
    "spice": Metric("captioning", "%", "up", "SPICE", needs="[caption], Java, CoreNLP"),
    "caption_scores": Metric("captioning", "%", "up", "BLEU-1 to 4, ROUGE-L, CIDEr-D, METEOR if it can run; a table"),
    "clipscore": Metric("captioning", "%", "up", "CLIPScore; see perdure prepare clipscore"),
    "refclipscore": Metric("captioning", "%", "up", "RefCLIPScore; see perdure prepare clipscore"),
}
"""Name -> metric. What a task may list in `metrics`; `task_accuracy` is measured wherever tasks are inferred."""


@dataclass(frozen=True, slots=True)
class Inferred:
    """Predictions of a method that was not told the task, and the task that it took each example to be of."""

    predictions: Any
    tasks: Sequence[str]


def records(
    kind: Kind, predictions: Any, examples: Sequence[Example], query: Query, *, task: str = ""
) -> list[dict[str, Any]]:
    """One JSON-ready record an example, from what a predictor of this kind returned for a batch.

    Args:
        task: the task tested; stands beside the `inferred` one, if the method inferred any.
    """
    assert kind in RECORDERS, f"no records for tasks of kind {kind}"
    if isinstance(predictions, Inferred):
        rows = records(kind, predictions.predictions, examples, query)
        return [row | {"task": task, "inferred": own} for row, own in zip(rows, predictions.tasks, strict=True)]
    return import_module(f"{__name__}.{RECORDERS[kind]}").records(predictions, examples, query)


def compute(name: str, records: Iterable[dict[str, Any]]) -> Any:
    """The metric's number (or a dict of numbers by name) over these records.

    Raises RecipeError for a name that no metric has.
    """
    return getattr(import_module(f"{__name__}.{metric(name).module}"), name)(records)


def metric(name: str) -> Metric:
    """The entry of `METRICS`; RecipeError with the nearest name if there is none."""
    if name not in METRICS:
        near = nearest(name, METRICS)
        raise RecipeError(
            f"there is no metric `{name}`",
            where="metrics",
            expected=f"one of {', '.join(sorted(METRICS))}",
            todo=f"Did you mean `{near}`?" if near else "See: perdure list metrics",
        )
    return METRICS[name]
