"""What a run that retrieves searches in: images or texts, whose features may be kept in a file.

Knows galleries, files and what tells one from its changed self. Does not know how features are made.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure import checkpoint
from perdure.api import Opened
from perdure.errors import DataError
from perdure.images import NamedImage
from perdure.prediction import asked
from perdure.run_folder.run_files import checkpoint_file
from perdure.types import Batch, Predictions, Query


def query(base: Query, given: Sequence[Any]) -> Query:
    """The question among what is given: images, by path or as they are; or texts, the lines of a ``.txt`` file.

    Raises:
        DataError: nothing is there.
    """
    texts = [one for one in given if isinstance(one, str | Path) and str(one).endswith(".txt")]
    if texts:
        from perdure.files.text_files import lines, read_text

        found: list[Any] = [line for one in texts for line in lines(read_text(Path(one))) if line.strip()]
    else:
        found = [NamedImage(e.id, e.inputs["image"]) for e in asked.images(given) if "image" in e.inputs]
    if not found:
        named = ", ".join(map(str, given))
        raise DataError("nothing to search in", where=named, expected="images, or a .txt file with a text a line")
    return replace(base, candidates=tuple(found))


def predictor(opened: Opened, asking: Query, file: Path | None) -> Callable[[Batch], Predictions]:
    """A predictor among the query's candidates; with `file` their features are read from there, as far as they are
    there and nothing has changed, and written there.

    Raises:
        DataError: the method keeps no features of a gallery.
    """
    method: Any = opened.method
    if file is None:
        return method.predictor(asking)
    if not hasattr(method, "index"):
        what = f"{opened.recipe.method.name} keeps no features of what it searches in"
        raise DataError(what, where=str(file), todo="Leave the index out.")
    marks = [_mark(one) for one in asking.candidates]
    known = _read(file, opened)
    new = [one for one, mark in zip(asking.candidates, marks) if mark not in known]
    if new:
        made = method.index(replace(asking, candidates=tuple(new)))
        rows = {mark: i for i, mark in enumerate(mark for mark in marks if mark not in known)}
        known |= {mark: {name: table[i] for name, table in made.items()} for mark, i in rows.items()}
    features = {name: torch.stack([known[mark][name] for mark in marks]) for name in known[marks[0]]}
    if new:
        _write(file, opened, marks, features)
    return method.predictor(asking, features)


def _mark(candidate: Any) -> str:
    """What tells an image from its changed self: path, size and time; of others, the content."""
    image: Any = getattr(candidate, "image", None)
    if isinstance(image, str | Path) and os.path.isfile(image):
        status = os.stat(image)
        return f"{os.path.abspath(image)} {status.st_size} {status.st_mtime_ns}"
    return f"{candidate} {hashlib.blake2b(_content(image, str(candidate)), digest_size=16).hexdigest()}"


def _content(image: Any, name: str) -> bytes:
    """What an image that is no file holds; of a text the text."""
    if isinstance(image, bytes):
        return image
    read = getattr(image, "read_bytes", None) or getattr(image, "tobytes", None)
    return name.encode() if read is None else read()


def _learned(opened: Opened) -> str:
    """Digest of what the run has learned and of its recipe: features are of one model."""
    digest = hashlib.blake2b(digest_size=16)
    for file in (opened.folder / "recipe.yaml", checkpoint_file(opened.folder)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _read(file: Path, opened: Opened) -> dict[str, dict[str, Tensor]]:
    """Features by mark; empty where there is no file, or one of another model."""
    if not file.is_file():
        return {}
    saved = checkpoint.load(file)
    if not isinstance(saved, dict) or saved.get("learned") != _learned(opened):
        return {}
    return {mark: {name: t[i] for name, t in saved["features"].items()} for i, mark in enumerate(saved["marks"])}


def _write(file: Path, opened: Opened, marks: Sequence[str], features: dict[str, Tensor]) -> None:
    cpu = {name: table.cpu().contiguous() for name, table in features.items()}
    checkpoint.save(file, {"learned": _learned(opened), "marks": list(marks), "features": cpu})
