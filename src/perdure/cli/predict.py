"""`perdure predict`: a finished run, or a method that adapts at test time, answers for files of the user's own.

Knows files, folders and how answers are printed. Does not know how a method answers.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from perdure.cli import _complete
from perdure.cli._layout import libraries_aside
from perdure.images import SUFFIXES, is_image

EXAMPLES = """
perdure predict runs/mg_clip-microworld/seed_0 cat.jpg
perdure predict runs/mg_clip-cifar100/seed_0 photos/ --top 5 --json
perdure predict --method rlcf_encoder --classes "cat,dog,red panda" photos/ --html before_and_after.html
perdure predict --find "a dog on a beach" photos/ --top 5
"""


def command(
    run: Annotated[
        Path,
        typer.Argument(
            help="folder of a run; with --method or --find the first file",
            metavar="RUN",
            autocompletion=_complete.runs,
        ),
    ],
    files: Annotated[list[Path] | None, typer.Argument(help="images, or folders of images", metavar="FILE...")] = None,
    top: Annotated[int, typer.Option("--top", min=1, max=10**6, help="answers for each file")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="comma-separated values")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, xpu or mps")] = "auto",
    method: Annotated[str, typer.Option("--method", help="instead of a run: adapt to each image by this method")] = "",
    classes: Annotated[str, typer.Option("--classes", help='with --method: "a,b,c", or @FILE')] = "",
    model: Annotated[list[str] | None, typer.Option("--model", help="with --method or --find: ROLE=WEIGHTS")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="with --method or --find: KEY=VALUE")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="with --method: write a page of it")] = None,
    find: Annotated[str, typer.Option("--find", help="rank the images by this text, adapted to by RLCF")] = "",
) -> None:
    """Classify images with what a run has learned.

    A file that cannot be read is named on standard error; the others are answered, and the exit code is 1.
    """
    from perdure.errors import DataError
    from perdure.folders import require_file

    form = "json" if as_json else "csv" if as_csv else "text"
    found = list(_images([run, *(files or [])] if method or find else files or []))
    if not found:
        named = ", ".join(map(str, files or [run]))
        raise DataError("no image there", where=named, expected=", ".join(sorted(SUFFIXES)))
    if html is not None:
        require_file(html, setting="--html")
    if find:
        _find_among(found, find, model or [], settings or [], form=form, top=top, device=device)
        return
    if method:
        _adapt_to(found, method, classes, model or [], settings or [], form=form, top=top, device=device, html=html)
        return
    with libraries_aside():
        answers, runtime = _answered(run, found, top, device)
    _print(answers, form=form)
    _name_unreadable(runtime.skipped)


def _answered(run: Path, found: Sequence[Path], top: int, device: str) -> tuple[list[dict[str, Any]], Any]:
    """What a run answers, and the runtime that notes what could not be read."""
    from perdure import api, device_memory  # they bring torch: after all that can be wrong in the arguments
    from perdure.errors import DataError

    opened = api.reopen(run, device=device)
    if opened.query.kind != "classify":
        raise DataError(f"the run answers tasks of kind {opened.query.kind}", where=str(run), expected="classify")
    todo = "Name fewer files at a time, or add --device cpu."
    with device_memory.explained(None, opened.runtime, todo=todo):
        return _answers(opened, found, top), opened.runtime


def _adapt_to(
    found: Sequence[Path],
    method: str,
    classes: str,
    models: Sequence[str],
    settings: Sequence[str],
    *,
    form: Literal["json", "csv", "text"],
    top: int,
    device: str,
    html: Path | None,
) -> None:
    """Answers before and after adapting to each image, and what the reward model says."""
    from perdure.cli import _adapt

    named = _adapt.read_classes(classes)
    with libraries_aside():
        rows, runtime = _adapt.adapt(method, named, found, models=models, settings=settings, top=top, device=device)
    print(_adapt.show(rows, form=form))
    if html is not None:
        _adapt.write_page(html, rows, method=method)
    _name_unreadable(runtime.skipped)


def _find_among(
    found: Sequence[Path],
    text: str,
    models: Sequence[str],
    settings: Sequence[str],
    *,
    form: Literal["json", "csv", "text"],
    top: int,
    device: str,
) -> None:
    """The files that fit a text best."""
    from perdure.cli import _find

    rows, broken = _find.find(text, found, models=models, settings=settings, top=top, device=device)
    print(_find.show(rows, form=form))
    _name_unreadable(broken)


def _name_unreadable(skipped: Mapping[str, str]) -> None:
    """On standard error; then the exit code is 1."""
    from perdure.errors import printable

    for reason in skipped.values():
        print(printable(reason), file=sys.stderr)
    if skipped:
        raise SystemExit(1)


def _images(paths: Sequence[Path]) -> Iterator[Path]:
    """Files as they are given, and the images in folders, sorted."""
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if is_image(p))
        else:
            yield path


def _answers(opened: Any, files: Sequence[Path], top: int) -> list[dict[str, Any]]:
    """One object a readable file: ``{"file", "answers": [{"class", "score"}]}``, with the method's own scores."""
    from perdure.evaluate import predicting
    from perdure.loading import ExampleBatches
    from perdure.types import Example

    method, query = opened.method, opened.query
    examples = [Example(id=str(path), inputs={"image": path}) for path in files]
    batches = ExampleBatches(
        examples,
        method.preprocess,
        batch_size=opened.recipe.evaluate.batch_size,
        runtime=opened.runtime,
        stage="predict",
        training=False,
        collate=getattr(method, "collate", None),
    )
    rows: list[dict[str, Any]] = []
    with predicting(method, opened.runtime):
        predict = method.predictor(query)
        for batch, _ in batches.epoch(0):
            if batch is None:
                continue
            best = predict(batch).float().topk(min(top, len(query.candidates)), dim=1)
            for position, scores, labels in zip(batch["position"].tolist(), best.values, best.indices):
                pairs = zip(labels.tolist(), scores.tolist())
                named = [{"class": query.candidates[label], "score": round(score, 4)} for label, score in pairs]
                rows.append({"file": str(files[position]), "answers": named})
    return rows


def _print(rows: Sequence[dict[str, Any]], *, form: Literal["json", "csv", "text"]) -> None:
    if form == "json":
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    if form == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(["file", "rank", "class", "score"])
        for row in rows:
            writer.writerows([row["file"], k + 1, a["class"], a["score"]] for k, a in enumerate(row["answers"]))
        return
    for row in rows:
        print(row["file"] + "  " + ", ".join(f"{a['class']} ({a['score']:g})" for a in row["answers"]))
