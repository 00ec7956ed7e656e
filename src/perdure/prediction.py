"""Answers of a run, or of an export that is a run's state, to images of one's own.

Knows opened runs and images. Does not know commands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from perdure import api
from perdure.api import Opened
from perdure.errors import DataError
from perdure.evaluate import predicting
from perdure.loading import ExampleBatches
from perdure.types import Batch, Example

KINDS = ("classify", "caption")
"""Kinds of tasks whose input is one image."""


def predict(folder: str | Path, images: Sequence[Any], *, top: int = 5, device: str = "auto") -> list[dict[str, Any]]:
    """What a run has learned says of images.

    Args:
        folder: of a run, or of an export that says ``perdure.predict``.
        images: paths, PIL images or uint8 arrays.
        top: classes an image.

    Returns:
        One object an image: ``{"file", "answers": [{"class", "score"}]}``, the method's own scores, the best first; for
        captions ``{"file", "caption"}``.

    Raises:
        UnreadableExample: an image cannot be read.
        DataError: the run's tasks are not about single images.
    """
    opened = api.reopen(Path(folder), device=device)
    opened.runtime.unreadable = "stop"
    return answers(opened, images, top)


def answers(opened: Opened, images: Sequence[Any], top: int) -> list[dict[str, Any]]:
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
            best = found.float().topk(min(top, len(query.candidates)), dim=1)
            for position, scores, labels in zip(batch["position"].tolist(), best.values, best.indices):
                pairs = zip(labels.tolist(), scores.tolist())
                named = [{"class": query.candidates[label], "score": round(score, 4)} for label, score in pairs]
                rows.append({"file": names[position], "answers": named})
    return rows


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
