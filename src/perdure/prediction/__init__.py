"""Answers of a run, or of an export that is a run's state, to images, questions and clips of one's own.

Knows runs and how one is loaded for one call. Does not know commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perdure.prediction.loaded import Loaded, load

__all__ = ["Loaded", "load", "predict"]


def predict(
    folder: str | Path, images: Any, *, top: int = 5, device: str = "auto", unknown_below: float = 0.0, **more: Any
) -> list[dict[str, Any]]:
    """``perdure.predict``: what a run has learned says of images.

    Args:
        folder: of a run, or of an export that says ``perdure.predict``.
        images: paths, folders with images, PIL images or uint8 arrays; one or several.
        top: classes an image.
        unknown_below: adds ``"unknown": true`` where the first answer is less probable, else false.
        **more: as `Loaded.predict`: ``ask="What is this?"``, ``task=...``.

    Returns:
        One object an image: ``{"file", "calibrated", "answers": [{"class", "probability"}]}``, the best first.
        ``calibrated`` says whether the run had validation examples by which the probabilities were set. ``score`` in
        place of both where a method's scores rank alone (docs/scores.md); for captions ``{"file", "caption"}``.

    Raises:
        UnreadableExample: an image cannot be read.
        CheckpointError: no task of the run is finished.
        DataError: the run's tasks are about other things; a folder holds no image.
        RecipeError: `unknown_below`, and the method has no probabilities.
    """
    return load(folder, device=device).predict(images, top=top, unknown_below=unknown_below, **more)
