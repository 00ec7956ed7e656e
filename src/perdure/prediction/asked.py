"""What people ask a model with, as Examples: images, videos, questions about them, clips.

Knows files, folders, tables, shards and prepared clips, and that a clip is so many frames and seconds of sound. Does
not know methods or models; decodes nothing but videos that are not prepared yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure.data import clips, music_avqa, table
from perdure.data.fitting import fitting
from perdure.errors import DataError
from perdure.images import SUFFIXES, find_images, is_image
from perdure.settings import registry
from perdure.settings.config import parse
from perdure.types import Example
from perdure.videos import is_video

LISTS = ("table", "webdataset", "hf_dataset")
"""Readers whose rows may stand for files."""


def images(given: Iterable[Any], *, ask: str = "", videos: bool = False) -> list[Example]:
    """Examples of images and of questions about them.

    Args:
        given: paths, folders of images, tables, shards, ``hf:owner/name``; PIL images, uint8 arrays, bytes; or mappings
            with ``image`` (or a list of such) or ``video``, and ``text``, each of which may be missing. A video is a
            file, a folder of frames or a list of frames. ``said``: earlier turns of a conversation, as records have
            them: ``[{"from": "human", "value": ...}, {"from": "gpt", ...}, ...]``.
        ask: the question about each that brings none.
        videos: whether a file may be a video.

    Raises:
        DataError: nothing is there.
    """
    found: list[Example] = []
    for number, one in enumerate(given, 1):
        if isinstance(one, Mapping):
            shown = {name: one[name] for name in ("image", "video") if one.get(name) is not None}
            path = next((value for value in shown.values() if isinstance(value, str | Path)), None)
            name = str(one.get("name", f"item {number}")) if path is None else str(path)
            said = {"said": one["said"]} if one.get("said") else {}
            found.append(_example(name, shown | said, one.get("text", ask)))
        elif isinstance(one, str | Path):
            for name, shown, text in _listed(one):
                kind = "video" if videos and is_video(name) else "image"
                found.append(_example(name, {} if shown is None else {kind: shown}, text or ask))
        else:
            found.append(_example(f"image {number}", {"image": one}, ask))
    return found


def _example(name: str, shown: Mapping[str, Any], text: str) -> Example:
    return Example(id=name, inputs={**shown, **({"text": text} if text else {})})


def _listed(path: str | Path) -> Iterator[tuple[str, Any, str]]:
    """(name, what is shown, question) of what a path stands for."""
    said = str(path)
    if said.startswith("hf:") or said.endswith(".tar") or Path(said).suffix.lower() in table.SUFFIXES:
        yield from _rows(said)
        return
    files = list(find_images([path]))
    if not files and Path(path).is_dir() and fitting(path).name in LISTS:
        yield from _rows(said)
    yield from ((str(file), file, "") for file in files)


def _rows(source: str) -> Iterator[tuple[str, Any, str]]:
    named = fitting(source)
    reader = registry.load("data", named.name)
    for row in reader.rows(parse(reader.Config, named.settings, where=source), unlabelled=True):
        if row.image is not None or row.question:
            yield row.id, row.image, row.question


def require_images(found: Sequence[Example], given: Iterable[Any]) -> None:
    """Raise a DataError if there is nothing to answer for."""
    if not found:
        named = ", ".join(map(str, given))
        raise DataError("no image there", where=named, expected=", ".join(sorted(SUFFIXES)))


def clip_examples(
    given: Iterable[str | Path], *, segments: int, ask: str = "", vocabulary: Sequence[str] = (), work: Path
) -> list[Example]:
    """Examples of clips.

    Args:
        given: folders that ``perdure data prepare`` wrote, or videos, which are prepared here.
        segments: seconds of each.
        ask: the question, for tasks of kind `answer`.
        vocabulary: words that it may have.
        work: folder for what is made of videos.

    Raises:
        DataError: no clip is there, or a word of the question is none that the model learned.
    """
    question = {} if not ask else _question(ask, vocabulary)
    found: list[Example] = []
    for number, one in enumerate(map(Path, given)):
        root = one
        if not (one / "frames").is_dir():
            root = _prepared(one, work / str(number), segments)
        found += _clips_below(root, segments, question)
    if not found:
        raise DataError(
            "no clip there", where=", ".join(map(str, given)), expected="frames/<clip>/*.jpg, wave/<clip>.npy"
        )
    return found


def _clips_below(root: Path, segments: int, question: Mapping[str, Any]) -> list[Example]:
    frames = root / "frames"
    folders = sorted({file.parent for file in frames.rglob("*.jpg")})
    names = [folder.relative_to(frames).as_posix() for folder in folders]
    make = clips.maker(
        [clips.Item(name, name, None, tuple(question.items())) for name in names], root, segments=segments
    )
    return [make(i, None) for i in range(len(names))]


def _prepared(source: Path, out: Path, segments: int) -> Path:
    from perdure.prepare.audio_visual import prepare_videos

    if not source.exists():
        raise DataError("there is no such file or folder", where=str(source), expected="videos, or a folder of clips")
    if source.is_file() and is_image(source):
        raise DataError(
            "is an image", where=str(source), expected="a video, or a folder that `perdure data prepare` wrote"
        )
    report = prepare_videos(source, out, seconds=segments)
    if report.broken:
        name, reason = next(iter(report.broken.items()))
        raise DataError(reason, where=name)
    return out


def _question(text: str, vocabulary: Sequence[str]) -> dict[str, Any]:
    from perdure.settings.suggestions import nearest

    if not vocabulary:
        raise DataError("the words of its questions are not written down", expected="a run made by this version")
    said = [word for word in text.strip().rstrip("?").split() if word]
    by_lower = {word.lower(): word for word in reversed(vocabulary)}
    words = [word if word in vocabulary else by_lower.get(word.lower(), word) for word in said]
    if unknown := [word for word in words if word not in vocabulary]:
        near = nearest(unknown[0], vocabulary)
        hint = f"Did you mean {near!r}?" if near else ""
        raise DataError(f"the word {unknown[0]!r} is none of its questions'", where=f"question {text!r}", todo=hint)
    ids = music_avqa.word_ids(words, vocabulary, where=f"question {text!r}")
    return {"question": ids, "question_text": " ".join(words) + "?"}
