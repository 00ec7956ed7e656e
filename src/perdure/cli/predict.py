"""`perdure predict`: a finished run, or a method that adapts at test time, answers for files of the user's own.

Knows files, folders and how answers are printed. Does not know how a method answers.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from perdure.cli import _complete
from perdure.cli._layout import libraries_aside
from perdure.images import SUFFIXES, find_images

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
    unknown_below: Annotated[
        float, typer.Option("--unknown-below", min=0, max=1, metavar="P", help="a run's answers less probable: unknown")
    ] = 0.0,
    find: Annotated[str, typer.Option("--find", help="rank the images by this text, adapted to by RLCF")] = "",
) -> None:
    """Classify images with what a run has learned.

    Each class comes with its probability, or with the method's score where that has none (docs/scores.md);
    standard error, JSON and CSV say whether the probabilities were calibrated on validation images.
    A file that cannot be read is named on standard error; the others are answered, and the exit code is 1.
    """
    from perdure.errors import DataError
    from perdure.files.folders import require_file

    form = "json" if as_json else "csv" if as_csv else "text"
    found = list(find_images([run, *(files or [])] if method or find else files or []))
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
        answers, runtime = _answered(run, found, top, device, unknown_below)
    _print(answers, form=form)
    _name_unreadable(runtime.skipped)


def _answered(
    run: Path, found: Sequence[Path], top: int, device: str, unknown_below: float
) -> tuple[list[dict[str, Any]], Any]:
    """What a run answers, and the runtime that notes what could not be read."""
    from perdure import api, device_memory, prediction  # they bring torch: after what can be wrong in the arguments

    opened = api.reopen(run, device=device)
    if opened.done < opened.tasks:
        among = f"answers are among {len(opened.query.candidates)} classes"
        print(f"{opened.folder}: unfinished, {opened.done} of {opened.tasks} tasks; {among}", file=sys.stderr)
    _say_what_numbers_are(opened)
    todo = "Name fewer files at a time, or add --device cpu."
    with device_memory.explained(None, opened.runtime, todo=todo):
        return prediction.answers(opened, found, top, unknown_below=unknown_below), opened.runtime


def _say_what_numbers_are(opened: Any) -> None:
    """Whether the probabilities say how often answers are right: on standard error."""
    from perdure.calibration import has_logits

    if opened.query.kind == "classify" and has_logits(opened.method):
        calibrated = opened.temperature is not None
        how = "calibrated on validation images" if calibrated else "not calibrated (no validation images)"
        print(f"{opened.folder}: probabilities are {how}; docs/scores.md", file=sys.stderr)


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


def _print(rows: Sequence[dict[str, Any]], *, form: Literal["json", "csv", "text"]) -> None:
    if form == "json":
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    if form == "csv":
        _print_table(rows)
        return
    for row in rows:
        said = row.get("caption") or ", ".join(f"{a['class']} ({_figure(a)})" for a in row["answers"])
        print(f"{row['file']}  {'unknown: ' if row.get('unknown') else ''}{said}")


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Comma-separated values."""
    writer = csv.writer(sys.stdout)
    captions = any("caption" in row for row in rows)
    kind = next((key for row in rows for a in row.get("answers", ()) for key in a if key != "class"), "probability")
    flagged = [name for name in ("calibrated", "unknown") if any(name in row for row in rows)]
    writer.writerow(["file", "caption"] if captions else ["file", "rank", "class", kind, *flagged])
    for row in rows:
        more = [str(row[name]).lower() for name in flagged]
        ranked = [
            [row["file"], k, a["class"], f"{a[kind]:.4f}", *more] for k, a in enumerate(row.get("answers", ()), 1)
        ]
        writer.writerows([[row["file"], row["caption"]]] if captions else ranked)


def _figure(answer: dict[str, Any]) -> str:
    """`0.9431`, a probability; or `score 4.0512`."""
    return f"{answer['probability']:.4f}" if "probability" in answer else f"score {answer['score']:.4f}"
