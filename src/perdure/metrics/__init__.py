"""Metrics by name, and the records that they read.

Knows which module makes the records of a kind of task, and which function computes a metric. Does not
know models or files; imports neither torch nor numpy, so that `perdure list metrics` is quick.

A kind joins by one line in `RECORDERS`: the module here that has ``records(predictions, examples, query)
-> list[dict]``, JSON-ready. A metric joins by one line in `METRICS`: a function of the same name in that
line's module, from an iterable of records to a float (or to a dict of floats by name).

Other packages add both by entry points, of ``perdure.kinds`` (name -> module with `records`) and ``perdure.metrics``
(name -> module with a function of that name, ``UNIT = "%"`` and ``DIRECTION = "up"`` or ``"down"``). A metric can
also be a file, ``./mrr.py``, that holds the same for its own name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any, Literal

from perdure.errors import RecipeError
from perdure.settings import registry
from perdure.settings.source import Source, parsed
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
    spec: ModuleSpec | None = None
    """The module of a metric that is not perdure's own."""

    @property
    def arrow(self) -> str:
        return "↑" if self.direction == "up" else "↓"


TASK_KNOWN = "accuracy_in_task"
"""The metric whose forgetting and transfer stand beside the headline's: Task-IL beside Class-IL."""
METRICS: dict[str, Metric] = {
    "accuracy": Metric("classification", "%", "up", "examples whose highest score is the target"),
    "accuracy_in_task": Metric("classification", "%", "up", "the same among the classes of its task (Task-IL)"),
    "top5": Metric("classification", "%", "up", "examples whose target is among the five highest scores"),
    "per_class_accuracy": Metric("classification", "%", "up", "accuracy of each class, as a table"),
    "mean_per_class": Metric("classification", "%", "up", "mean over classes of their accuracy"),
    "ece": Metric("calibration", "%", "down", "expected calibration error, 15 bins of equal width"),
    "ece_20": Metric("calibration", "%", "down", "the same with 20 bins, as C-TPT and its successors print it"),
    "adaptive_ece": Metric("calibration", "%", "down", "the same, 15 bins with equally many examples"),
    "mce": Metric("calibration", "%", "down", "largest calibration error of the 15 bins"),
    "overconfidence": Metric("calibration", "%", "down", "mean confidence less accuracy, signed"),
    "brier": Metric("calibration", "of 2", "down", "mean squared error of all probabilities, summed over classes"),
    "nll": Metric("calibration", "nats", "down", "mean negative log probability of the target"),
    "auroc_wrong": Metric("calibration", "%", "up", "how well confidence tells right answers from wrong ones"),
    "fpr95_wrong": Metric("calibration", "%", "down", "wrong answers among the confident, at 95 % of right ones"),
    "aurc": Metric("calibration", "%", "down", "mean error rate when the least confident are left out, one by one"),
    "auroc_unknown": Metric("calibration", "%", "up", "how well confidence tells known classes from unknown ones"),
    "auroc_unknown_energy": Metric("calibration", "%", "up", "the same by energy, the log-sum-exp of logits"),
    "auroc_unknown_logit": Metric("calibration", "%", "up", "the same by the highest logit"),
    "fpr95_unknown": Metric("calibration", "%", "down", "unknown classes among the confident, at 95 % of known ones"),
    "aupr_known": Metric("calibration", "%", "up", "average precision of known classes by confidence"),
    "aupr_unknown": Metric("calibration", "%", "up", "average precision of unknown classes by its reverse"),
    "task_accuracy": Metric("task_identity", "%", "up", "examples whose task is found by a method that is not told it"),
    "answer_accuracy": Metric("instruction", "%", "up", "right answers by the task's own scorer"),
    "answer_scores": Metric("instruction", "%", "up", "all that the task's own scorer says, as a table"),
    "format_compliance": Metric("instruction", "%", "up", "answers in the form that the question asks for"),
    "format_errors": Metric("instruction", "%", "down", "answers in another form than the question asks for"),
    "superficial": Metric("instruction", "%", "down", "wrong answers in a wrong form"),
    "essential": Metric("instruction", "%", "down", "wrong answers in the right form"),
    "judged_accuracy": Metric("instruction", "%", "up", "answers right by a judge's help; see perdure prepare judge"),
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
    kind: Kind,
    predictions: Any,
    examples: Sequence[Example],
    query: Query,
    *,
    task: str = "",
    own: range = range(0),
) -> list[dict[str, Any]]:
    """One JSON-ready record an example, from what a predictor of this kind returned for a batch.

    Args:
        task: the task tested; stands beside the `inferred` one, if the method inferred any.
        own: labels of the task tested. Where more classes are asked for, records of `classify` also hold the best
            answer among these, so that accuracy with and without the task's name comes from one pass.
    """
    if isinstance(predictions, Inferred):
        rows = records(kind, predictions.predictions, examples, query, own=own)
        return [row | {"task": task, "inferred": own} for row, own in zip(rows, predictions.tasks, strict=True)]
    if kind == "classify" and 0 < len(own) < len(query.candidates):
        return _recorder(kind).records(predictions, examples, query, own=own)
    return _recorder(kind).records(predictions, examples, query)


def compute(name: str, records: Iterable[dict[str, Any]]) -> Any:
    """The metric's number (or a dict of numbers by name) over these records.

    Raises RecipeError for a name that no metric has.
    """
    entry = metric(name)
    module = registry.imported(entry.spec) if entry.spec else import_module(f"{__name__}.{entry.module}")
    return getattr(module, registry.label(name))(records)


def metric(name: str) -> Metric:
    """The entry of a metric; RecipeError with the nearest name if there is none."""
    if entry := find(name):
        return entry
    near = nearest(name, METRICS)
    raise RecipeError(
        f"there is no metric `{name}`",
        where="metrics",
        expected=f"one of {', '.join(sorted(METRICS))}, or a file such as ./{name}.py",
        todo=f"Did you mean `{near}`?" if near else "See: perdure list metrics",
    )


def find(name: str, files: Iterable[str] = ()) -> Metric | None:
    """The entry of a metric, without importing it: perdure's, another package's, or a file's; None if there is none.

    Args:
        files: paths among which a name without a path may stand for one.
    """
    if name in METRICS:
        return METRICS[name]
    if spec := registry.elsewhere("metrics", next((f for f in files if registry.label(f) == name), name)):
        return _described(parsed(spec), registry.label(name), spec)
    return None


def _described(source: Source, name: str, spec: ModuleSpec) -> Metric:
    """From a module's ``UNIT``, ``DIRECTION`` and the docstring of its function."""
    function = source.nodes.get(name)
    if not isinstance(function, ast.FunctionDef):
        raise RecipeError(f"has no function `{name}`", where=str(source.file), expected=f"def {name}(records)")
    unit, direction = (source.value(key) if key in source.nodes else None for key in ("UNIT", "DIRECTION"))
    if direction not in ("up", "down"):
        raise RecipeError("does not say what is better", where=str(source.file), expected='DIRECTION = "up" or "down"')
    docs = (ast.get_docstring(function) or "").split("\n")[0]
    return Metric(spec.name, str(unit or ""), direction, docs, spec=spec)


def _recorder(kind: str) -> Any:
    if kind in RECORDERS:
        return import_module(f"{__name__}.{RECORDERS[kind]}")
    if spec := registry.elsewhere("kinds", kind):
        return registry.imported(spec)
    raise RecipeError(
        f"nothing makes records for tasks of kind `{kind}`",
        expected=f"one of {', '.join(RECORDERS)}, or an entry point of perdure.kinds",
    )
