"""`perdure predict --find`: the user's own images that fit a text best, before and after adapting to the text.

Knows one text, files and how the answer is shown. Does not know how the method adapts.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from perdure.cli import _stated as stated

METHOD = "rlcf_retrieval"


def find(
    text: str, files: Sequence[Path], *, models: Sequence[str], settings: Sequence[str], top: int, device: str
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The best files, best first: ``{"file", "score", "before"}`` with the place before adapting; and unreadable ones.

    Raises:
        DataError: no text, or no image that can be read.
    """
    from perdure.errors import DataError, UnreadableExample
    from perdure.images import open_image

    if not text.strip():
        raise DataError("the text is empty", where="--find")
    readable, broken = [], {}
    for path in files:
        try:
            open_image(path)
            readable.append(path)
        except UnreadableExample as fault:
            broken[str(path)] = str(fault)
    if not readable:
        raise DataError("no image can be read", where=str(files[0]))
    before, after = _scores(text, readable, models, settings, device)
    place = {i: k for k, i in enumerate(before.argsort(descending=True, stable=True).tolist(), 1)}
    order = after.argsort(descending=True, stable=True).tolist()[:top]
    rows = [{"file": str(readable[i]), "score": round(float(after[i]), 4), "before": place[i]} for i in order]
    return rows, broken


def _scores(text: str, files: Sequence[Path], models: Sequence[str], settings: Sequence[str], device: str):
    """Logits of all images before and after adapting."""
    of_roles = stated.weights(METHOD, models)  # before torch is imported
    import torch

    from perdure import device_memory
    from perdure.images import NamedImage
    from perdure.keys import example_seed
    from perdure.loading import to_device
    from perdure.runtime import Runtime
    from perdure.runtime.placing import place
    from perdure.settings import registry
    from perdure.types import Example, Query, Task

    config = stated.settings(METHOD, settings)
    config = replace(config, samples=min(config.samples, len(files)))
    loaded = {role: stated.clip(weights).build() for role, weights in of_roles.items()}
    runtime = Runtime(device=device, quiet=True)
    query = Query(kind="retrieve", candidates=tuple(NamedImage(str(path)) for path in files))
    found, seed = [], example_seed(runtime.seed, text)
    for one in (replace(config, steps=0), config):
        method = registry.load("methods", METHOD)(one, **loaded)
        place(method, runtime)
        method.learn(Task(index=0, name="own images", kind="retrieve"), runtime)
        item = method.preprocess(Example(id=text, inputs={"text": text}), False)
        batch = to_device({"ids": item["ids"][None], "text": [text], "seed": torch.tensor([seed])}, runtime.device)
        with device_memory.explained(None, runtime, todo="Name fewer files, or add --device cpu."):
            found.append(method.predictor(query)(batch)[0].detach().cpu())
    assert all(torch.isfinite(row).all() for row in found)
    return found


def show(rows: Sequence[dict[str, Any]], *, form: Literal["json", "csv", "text"]) -> str:
    """Lines to print."""
    if form == "json":
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    if form == "csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file", "score", "place_before"])
        writer.writerows([row["file"], row["score"], row["before"]] for row in rows)
        return text.getvalue().rstrip("\n")
    return "\n".join(f"{row['score']:9.4f}  {row['file']}  (place {row['before']} before adapting)" for row in rows)
