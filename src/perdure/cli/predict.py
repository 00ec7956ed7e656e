"""`perdure predict`: a finished run, or a method that adapts at test time, answers for files of the user's own.

Knows files, folders and how answers are printed. Does not know how a method answers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from perdure.cli import _answers, _complete
from perdure.cli._answers import Form
from perdure.cli._layout import libraries_aside
from perdure.images import SUFFIXES, find_images, is_image

EXAMPLES = """
perdure predict runs/mg_clip-microworld/seed_0 cat.jpg
perdure predict runs/mg_clip-cifar100/seed_0 photos/ --top 5 --json
perdure predict runs/sefe-microworld/seed_0 --ask "What is in the picture?" cat.jpg
perdure predict runs/sefe-coin_qwen/seed_0 --ask "What has changed?" --together before.jpg after.jpg
perdure predict runs/sefe-coin_qwen/seed_0 --ask "What happens?" clip.mp4
perdure predict runs/rlcf_retrieval-microworld/seed_0 photos/ --ask "a dog on a beach" --index photos.index --top 5
perdure predict runs/php-microworld/seed_0 clips/ --task AVE
perdure predict --method rlcf_encoder --classes "cat,dog,red panda" photos/ --html before_and_after.html
perdure predict --find "a dog on a beach" photos/ --top 5
"""
ASKED = ("instruct", "answer", "retrieve")
"""Kinds that need a question or a text."""


Run = Annotated[
    Path,
    typer.Argument(
        help="folder of a run, or RUN@3; with --method or --find the first file",
        metavar="RUN",
        autocompletion=_complete.runs,
    ),
]
Files = Annotated[list[Path] | None, typer.Argument(help="images, folders, tables, shards; clips", metavar="FILE...")]


def command(
    run: Run,
    files: Files = None,
    top: Annotated[int, typer.Option("--top", min=1, max=10**6, help="answers for each file")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="comma-separated values")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, xpu or mps")] = "auto",
    ask: Annotated[str, typer.Option("--ask", help="a question about each file; to search: a text, or an image")] = "",
    task: Annotated[str, typer.Option("--task", help="of a run whose tasks ask different things: which")] = "",
    index: Annotated[
        Path | None, typer.Option("--index", help="to search: file that keeps the files' features")
    ] = None,
    masks: Annotated[Path | None, typer.Option("--masks", help="of clips: write masks as PNG to this folder")] = None,
    method: Annotated[str, typer.Option("--method", help="instead of a run: adapt to each image by this method")] = "",
    classes: Annotated[str, typer.Option("--classes", help='with --method: "a,b,c", or @FILE')] = "",
    model: Annotated[list[str] | None, typer.Option("--model", help="with --method or --find: ROLE=WEIGHTS")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="with --method or --find: KEY=VALUE")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="with --method: write a page of it")] = None,
    unknown_below: Annotated[
        float, typer.Option("--unknown-below", min=0, max=1, metavar="P", help="a run's answers less probable: unknown")
    ] = 0.0,
    together: Annotated[bool, typer.Option("--together", help="one question about all images at once")] = False,
    frames: Annotated[
        bool, typer.Option("--frames", help="one question about all images as frames of a video")
    ] = False,
    find: Annotated[str, typer.Option("--find", help="rank the images by this text, adapted to by RLCF")] = "",
) -> None:
    """Answer for files with what a run has learned: classes, captions, answers, events, masks, or what is found.

    Each class comes with its probability, or with the method's score where that has none (docs/scores.md). A run that
    answers questions reads them from the keyboard where --ask is not given.
    A file that cannot be read is named on standard error; the others are answered, and the exit code is 1.
    """
    from perdure.files.folders import require_file, require_folder

    form = "json" if as_json else "csv" if as_csv else "text"
    if html is not None:
        require_file(html, setting="--html")
    if method or find:
        found = _images([run, *(files or [])])
        if find:
            _find_among(found, find, model or [], settings or [], form=form, top=top, device=device)
        else:
            _adapt_to(found, method, classes, model or [], settings or [], form=form, top=top, device=device, html=html)
        return
    if masks is not None:
        require_folder(masks, setting="--masks")
    how = {"top": top, "task": task, "unknown_below": unknown_below, "unreadable": "skip"}
    given = _joined(files or [], together=together, frames=frames)
    _answer(run, given, ask, form=form, device=device, index=index, masks=masks, how=how)


def _images(given: Sequence[Path]) -> list[Path]:
    from perdure.errors import DataError

    if found := list(find_images(given)):
        return found
    named = ", ".join(map(str, given))
    raise DataError("no image there", where=named, expected=", ".join(sorted(SUFFIXES)))


def _joined(files: Sequence[Path], *, together: bool, frames: bool) -> Sequence[Any]:
    """What questions are about: each file; or all images at once, as they are or as frames of a video."""
    from perdure.errors import RecipeError

    if together and frames:
        raise RecipeError("--together is said, too", where="--frames", expected="one of them")
    if not together and not frames:
        return files
    images = _images(files)
    return [{"video" if frames else "image": images, "name": " ".join(map(str, images))}]


def _answer(
    run: Path,
    files: Sequence[Any],
    ask: str,
    *,
    form: Form,
    device: str,
    index: Path | None,
    masks: Path | None,
    how: dict[str, Any],
) -> None:
    """What a run answers, printed."""
    from perdure.errors import DataError

    if not files and not ask:
        raise DataError("no image there", where=str(run), expected=", ".join(sorted(SUFFIXES)), todo="Name some files.")
    with libraries_aside():
        from perdure import prediction  # it brings torch: after what can be wrong in the arguments
        from perdure.prediction import asked

        asked.require_images(asked.images(files, ask=ask or " "), files)
        loaded = prediction.load(run, device=device)
    _say_what_numbers_are(loaded.opened)
    kind = loaded.query(how["task"]).kind
    for number, question in enumerate(_questions(kind, ask)):
        rows = _rows(loaded, kind, files, question, index, how)
        _answers.show(rows, form=form, headed=not number)
        if masks is not None:
            _answers.write_masks(rows, masks)
    _name_unreadable(loaded.skipped)


def _rows(
    loaded: Any, kind: str, files: Sequence[Any], ask: str, index: Path | None, how: dict[str, Any]
) -> list[dict[str, Any]]:
    from perdure import device_memory

    todo = "Name fewer files at a time, or add --device cpu."
    with libraries_aside(), device_memory.explained(None, loaded.opened.runtime, todo=todo):
        if kind != "retrieve":
            return loaded.predict(files, ask=ask, **how)
        given = [Path(ask)] if is_image(ask) and Path(ask).exists() else ()
        return loaded.predict(given, ask="" if given else ask, gallery=files, index=index, **how)


def _questions(kind: str, ask: str) -> Iterator[str]:
    """The one that is asked; where the kind needs one and none is given, those that are typed, until an empty line."""
    if ask or kind not in ASKED:
        yield ask
        return
    if sys.stdin.isatty():
        print("One question a line, each by itself; an empty line ends.", file=sys.stderr)
    while question := sys.stdin.readline().strip():
        yield question


def _say_what_numbers_are(opened: Any) -> None:
    """How far an unfinished run is, and whether probabilities say how often answers are right: on standard error."""
    from perdure.calibration import has_logits

    if opened.done < opened.tasks:
        among = f"answers are among {len(opened.query.candidates)} classes"
        print(f"{opened.folder}: unfinished, {opened.done} of {opened.tasks} tasks; {among}", file=sys.stderr)
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

    with libraries_aside():
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
