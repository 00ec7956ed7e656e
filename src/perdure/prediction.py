"""Answers of a run, or of an export that is a run's state, to images of one's own.

Knows opened runs and images. Does not know commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from perdure import api
from perdure.api import Opened
from perdure.calibration import probabilities
from perdure.errors import DataError, RecipeError
from perdure.evaluate import predicting
from perdure.images import SUFFIXES, find_images
from perdure.loading import ExampleBatches
from perdure.types import Batch, Example

KINDS = ("classify", "caption")
"""Kinds of tasks whose input is one image."""


def predict(
    folder: str | Path, images: Any, *, top: int = 5, device: str = "auto", unknown_below: float = 0.0
) -> list[dict[str, Any]]:
    """``perdure.predict``: what a run has learned says of images.

    Args:
        folder: of a run, or of an export that says ``perdure.predict``.
        images: paths, folders with images, PIL images or uint8 arrays; one or several.
        top: classes an image.
        unknown_below: adds ``"unknown": true`` where the first answer is less probable, else false.

    Returns:
        One object an image: ``{"file", "calibrated", "answers": [{"class", "probability"}]}``, the best first.
        ``calibrated`` says whether the run had validation examples by which the probabilities were set. ``score`` in
        place of both where a method's scores rank alone (docs/scores.md); for captions ``{"file", "caption"}``.

    Raises:
        UnreadableExample: an image cannot be read.
        CheckpointError: no task of the run is finished.
        DataError: the run's tasks are not about single images; a folder holds no image.
        RecipeError: `unknown_below`, and the method has no probabilities.
    """
    given = list(images) if isinstance(images, Iterable) and not _is_one(images) else [images]
    found: list[Any] = []
    for one in given:
        found += find_images([one]) if isinstance(one, str | Path) else [one]
    if given and not found:
        raise DataError("no image there", where=", ".join(map(str, given)), expected=", ".join(sorted(SUFFIXES)))
    opened = api.reopen(Path(folder), device=device)
    opened.runtime.unreadable = "stop"
    return answers(opened, found, top, unknown_below=unknown_below)


def _is_one(images: Any) -> bool:
    """Whether this is one image or path, not several."""
    return isinstance(images, str | Path) or (hasattr(images, "shape") and images.ndim < 4)


def answers(opened: Opened, images: Sequence[Any], top: int, *, unknown_below: float = 0.0) -> list[dict[str, Any]]:
    """As `predict`, of a run that is open; an image that cannot be read is left out where the runtime skips such."""
    query = opened.query
    if query.kind not in KINDS:
        what = f"the run answers tasks of kind {query.kind}"
        raise DataError(what, where=str(opened.folder), expected=" or ".join(KINDS))
    names = [str(image) if isinstance(image, str | Path) else f"image {i}" for i, image in enumerate(images, 1)]
    examples = [Example(id=name, inputs={"image": image}) for name, image in zip(names, images)]
    rows: list[dict[str, Any]] = []
    with predicting(opened.method, opened.runtime):
        answer = opened.method.predictor(query)
        for batch in _batches(opened, examples):
            found = answer(batch)
            if query.kind == "caption":
                rows += [{"file": names[i], "caption": text} for i, text in zip(batch["position"].tolist(), found)]
                continue
            ranked = _ranked(opened, found.float(), top, unknown_below)
            rows += [{"file": names[i], **row} for i, row in zip(batch["position"].tolist(), ranked)]
    return rows


def _ranked(opened: Opened, scores: Tensor, top: int, unknown_below: float) -> Iterator[dict[str, Any]]:
    """The best classes of each image by the method's scores, with their probabilities where there are any."""
    names = opened.query.candidates
    shares = probabilities(opened.method, scores, temperature=opened.temperature or 1.0)
    if shares is None and unknown_below:
        raise RecipeError(f"{opened.recipe.method.name} gives scores, no probabilities", where="--unknown-below")
    kind, values = ("score", scores) if shares is None else ("probability", shares)
    best = scores.topk(min(top, len(names)), dim=1).indices
    for labels, row in zip(best.tolist(), values.tolist()):
        said = {} if shares is None else {"calibrated": opened.temperature is not None}
        said |= {"unknown": row[labels[0]] < unknown_below} if unknown_below else {}
        yield {**said, "answers": [{"class": names[label], kind: round(row[label], 4)} for label in labels]}


def _batches(opened: Opened, examples: Sequence[Example]) -> Iterator[Batch]:
    batches = ExampleBatches(
        examples,
        opened.method.preprocess,
        batch_size=opened.recipe.evaluate.batch_size,
        runtime=opened.runtime,
        stage="predict",
        training=False,
        collate=getattr(opened.method, "collate", None),
    )
    yield from (batch for batch, _ in batches.epoch(0) if batch is not None)
