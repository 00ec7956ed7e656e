"""Saved records of predictions, checked when they are read: one schema for each module of metrics.

Knows the fields that metrics read and their types. Which of them a metric needs it says itself: a field that is
missing is named there.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from perdure.run_folder.run_files import Number, Part


class _Record(Part):
    id: str | int = ""


class _Classified(_Record):
    target: int | None = None
    predicted: int = 0
    predicted_in_task: int | None = None
    top5: list[int] = []
    confidence: Number = None
    probabilities: list[Number] = []
    nll: Number = None
    brier: Number = None
    energy: Number = None
    logit: Number = None
    task: str = ""
    inferred: str = ""


class _Ranked(_Record):
    rank: int | None = None


class Captioned(_Record):
    caption: str = ""
    references: list[str] = []
    clipscore: Number = None
    refclipscore: Number = None


class _Answered(_Record):
    prediction: str | None = None
    question: str = ""
    scorer: str = ""
    form: str = ""
    official: bool = False
    has_image: bool = False
    judged: Number = None


class _Heard(_Record):
    kind: str = ""
    classes: int = 0
    segments: int = 0
    labels: list[int] = []
    iou: list[float] = []
    f_score: float = 0.0
    type: list[str] = []
    predicted: dict[str, list[tuple[int, int, int] | list[int]]] = {}
    true: dict[str, list[tuple[int, int, int] | list[int]]] = {}


SCHEMAS: dict[str, type[BaseModel]] = {
    "classification": _Classified,
    "calibration": _Classified,
    "task_identity": _Classified,
    "retrieval": _Ranked,
    "captioning": Captioned,
    "instruction": _Answered,
    "audio_visual": _Heard,
}
"""Module of `perdure.metrics` -> what its records hold."""


def schema(module: str) -> type[Any]:
    """The schema of the records that the metrics of a module read."""
    return SCHEMAS.get(module, _Record)
