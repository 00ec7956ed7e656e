"""A predictor's output as answers that people read: one JSON-ready mapping an example, by the kind of question.

Knows the kinds, classes by column, probabilities and runs of segments. Does not know files, methods or models.

| kind | answer |
|---|---|
| classify | ``{"answers": [{"class", "probability" or "score"}]}``, the best first; ``calibrated``, ``unknown`` |
| retrieve | ``{"found": [{"file", "score"}]}``, the best first |
| caption | ``{"caption"}`` |
| instruct | ``{"question", "answer"}`` |
| localize-events | ``{"events": [{"class", "from", "to"}]}``, in seconds |
| parse-video | ``{"audio": events, "visual": events}`` |
| segment | ``{"size": [height, width], "masks": [run lengths a frame], "shares": [share of the pixels a frame]}`` |
| answer | ``{"question", "answer", "answers"}`` |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from torch import Tensor

from perdure.api import Opened
from perdure.calibration import probabilities
from perdure.errors import RecipeError
from perdure.metrics import Inferred
from perdure.metrics.masks import run_lengths
from perdure.metrics.parsing import runs
from perdure.types import Example, Query

Answer = dict[str, Any]


def answers(
    opened: Opened, query: Query, found: Any, examples: Sequence[Example], *, top: int, unknown_below: float = 0.0
) -> list[Answer]:
    """What a predictor returned for these examples, in their order.

    Raises:
        RecipeError: `unknown_below`, and the method has no probabilities.
    """
    if isinstance(found, Inferred):
        rows = answers(opened, query, found.predictions, examples, top=top, unknown_below=unknown_below)
        return [row | {"task": task} for row, task in zip(rows, found.tasks, strict=True)]
    match query.kind:
        case "classify":
            return list(_ranked(opened, query, found.float(), top, unknown_below))
        case "retrieve":
            return [{"found": _best(query.candidates, row, top, "file", "score")} for row in found.float()]
        case "caption":
            return [{"caption": text} for text in found]
        case "instruct":
            return [{"question": e.inputs["text"], "answer": text} for e, text in zip(examples, found, strict=True)]
        case "localize-events":
            return [{"events": _events(row, query)} for row in found.argmax(2).tolist()]
        case "parse-video":
            return list(_parsed(found, query))
        case "segment":
            return [_masks(logits) for logits in found.float().cpu() > 0]
        case "answer":
            return list(_answered(query, found.float(), examples, top))
    raise RecipeError(f"no answers are made of tasks of kind {query.kind}")


def _ranked(opened: Opened, query: Query, scores: Tensor, top: int, unknown_below: float) -> Iterator[Answer]:
    """The best classes of each image by the method's scores, with their probabilities where there are any."""
    names = query.candidates
    shares = probabilities(opened.method, scores, temperature=opened.temperature or 1.0)
    if shares is None and unknown_below:
        raise RecipeError(f"{opened.recipe.method.name} gives scores, no probabilities", where="--unknown-below")
    kind, values = ("score", scores) if shares is None else ("probability", shares)
    best = scores.topk(min(top, len(names)), dim=1).indices
    for labels, row in zip(best.tolist(), values.tolist()):
        said = {} if shares is None else {"calibrated": opened.temperature is not None}
        said |= {"unknown": row[labels[0]] < unknown_below} if unknown_below else {}
        yield {**said, "answers": [{"class": names[label], kind: round(row[label], 4)} for label in labels]}


def _best(names: Sequence[str], scores: Tensor, top: int, called: str, kind: str) -> list[Answer]:
    values, places = scores.topk(min(top, len(names)))
    return [{called: str(names[i]), kind: round(value, 4)} for i, value in zip(places.tolist(), values.tolist())]


def _events(labels: Iterable[int], query: Query) -> list[Answer]:
    """Runs of one class, a class a second: ``[0, 0, 1]`` is class 0 from 0 to 2 and class 1 from 2 to 3."""
    found, begin = [], 0
    for label, same in groupby(labels):
        end = begin + len(list(same))
        found.append({"class": query.candidates[label], "from": begin, "to": end})
        begin = end
    return found


def _parsed(found: Any, query: Query) -> Iterator[Answer]:
    present = {m: found[m].transpose(1, 2).bool().cpu().numpy() for m in ("audio", "visual")}
    for i in range(len(found["scores"])):
        yield {
            m: [
                {"class": query.candidates[c], "from": begin, "to": end}
                for c, row in enumerate(maps[i])
                for begin, end in runs(row)
            ]
            for m, maps in present.items()
        }


def _masks(masks: Tensor) -> Answer:
    shares = masks.float().mean((1, 2)).tolist()
    size = list(masks.shape[1:])
    return {"size": size, "masks": [run_lengths(one) for one in masks], "shares": [round(s, 4) for s in shares]}


def _answered(query: Query, scores: Tensor, examples: Sequence[Example], top: int) -> Iterator[Answer]:
    for example, row in zip(examples, scores, strict=True):
        best = _best(query.candidates, row, top, "answer", "score")
        yield {"question": example.inputs.get("question_text", ""), "answer": best[0]["answer"], "answers": best}
