"""Videos -> one frame and one second of 32 kHz sound a second, in the layout that the readers take.

Knows containers through PyAV, what is done already, and how clips that are short, silent or broken are told apart.
Does not know annotations or models. A clip ``<name>.mp4`` becomes ``frames/<name>/00000001.jpg ...`` and
``wave/<name>.npy``;
the wave is written last, so that a clip that was interrupted is made again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perdure.errors import DataError
from perdure.videos import SUFFIXES, is_video, require_av

if TYPE_CHECKING:
    from PIL import Image

RATE = 32_000
DELAY = 0.1
"""Seconds by which streams may start apart and still be taken for simultaneous: codecs state delays of their own."""
REPORT = "prepared.json"


@dataclass(kw_only=True)
class Report:
    """What became of the videos."""

    made: int = 0
    there_already: int = 0
    short: list[str] = field(default_factory=list)
    """Shorter than asked: the last frame stands still, the sound ends in silence."""
    silent: list[str] = field(default_factory=list)
    """Without a sound track, or with nothing in it: the wave is zeros."""
    broken: dict[str, str] = field(default_factory=dict)
    """Nothing was written; the reason by name."""


def prepare_videos(
    source: Path,
    out: Path,
    *,
    seconds: int = 10,
    start: float = 0.0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Frames and sound of all videos below a folder; goes on where an earlier call stopped.

    Args:
        source: folder of videos, or one video; folders within it stay folders (a class each, say).
        out: gets ``frames``, ``wave`` and ``prepared.json``, the report of this call.
        seconds: seconds taken of each video.
        start: where to begin, in seconds.
        workers: processes.
        progress: called with the videos done and their number after each.

    Raises:
        DataError: there is no video below `source`.
        MissingExtra: PyAV is not installed.
    """
    require_av()
    videos = find_videos(source)
    if not videos:
        raise DataError("no video is here", where=str(source), expected=", ".join(sorted(SUFFIXES)))
    base = source if source.is_dir() else source.parent
    _require_unique(videos, base)
    report = Report()
    todo = []
    for video in videos:
        if is_done(out, name_of(video, base), seconds):
            report.there_already += 1
        else:
            todo.append(video)
    work = partial(prepare_one, base=base, out=out, seconds=seconds, start=start)
    for count, (name, outcome) in enumerate(_each(work, todo, workers), 1):
        _note(report, name, outcome)
        if progress is not None:
            progress(count, len(todo))
    out.mkdir(parents=True, exist_ok=True)
    (out / REPORT).write_text(json.dumps(vars(report), indent=1), encoding="utf-8")
    return report


def find_videos(source: Path) -> list[Path]:
    """Video files below a folder, sorted; by suffix alone."""
    files: Iterable[Path] = source.rglob("*") if source.is_dir() else [source]
    return sorted(path for path in files if is_video(path) and path.is_file())


def name_of(video: Path, base: Path) -> str:
    """What a clip is called: its path below `base` without the suffix, with forward slashes."""
    return video.relative_to(base).with_suffix("").as_posix()


def is_done(out: Path, name: str, seconds: int) -> bool:
    """Whether a clip lies there complete."""
    wave = out / "wave" / f"{name}.npy"
    return wave.is_file() and (out / "frames" / name / f"{seconds:08d}.jpg").is_file()


def prepare_one(video: Path, *, base: Path, out: Path, seconds: int, start: float) -> tuple[str, dict[str, Any]]:
    """One video; its name, and ``{"broken": reason}`` or ``{"short": bool, "silent": bool}``."""
    import av

    name = name_of(video, base)
    try:
        frames, wave, long_enough = decode(video, seconds=seconds, start=start)
    except (av.FFmpegError, OSError, ValueError, IndexError, StopIteration) as error:
        return name, {"broken": _reason(error)}
    folder = out / "frames" / name
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for number, frame in enumerate(frames, 1):
        frame.save(aside / f"{number:08d}.jpg", quality=95)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)
    target = out / "wave" / f"{name}.npy"
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.npy")
    np.save(unfinished, wave)
    os.replace(unfinished, target)
    return name, {"short": not long_enough, "silent": not np.any(wave)}


def decode(video: Path, *, seconds: int, start: float = 0.0) -> tuple[list[Any], np.ndarray, bool]:
    """One frame from the middle of each second, mono sound at 32 kHz, and whether the video is long enough.

    Frames are turned as they are to be shown. Seconds count from where the picture or the sound starts, whichever is
    first.

    Returns:
        PIL images; float32 ``[seconds * 32000]`` in -1..1; false if frames or sound had to be filled up.

    Raises:
        ValueError: there is no frame in the time asked for; FFmpeg's own errors for broken files.
    """
    import av

    with av.open(str(video)) as container:
        if not container.streams.video:
            raise ValueError("there is no picture")
        lag = _lag(container)  # has read the first packets
    with av.open(str(video)) as container:
        frames, whole = _frames(container, seconds, start + min(lag, 0))
    with av.open(str(video)) as container:
        wave, length = _sound(container, seconds, start - max(lag, 0)) if container.streams.audio else (None, 0)
    samples = np.zeros(seconds * RATE, dtype=np.float32)
    if wave is not None:
        samples[: len(wave)] = wave
    return frames, samples, whole and (wave is None or length >= (seconds - 0.2) * RATE)


def _reason(error: Exception) -> str:
    """In words, without FFmpeg's own numbers and the path, which the report names."""
    from av.error import InvalidDataError

    said = getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
    if isinstance(error, InvalidDataError):
        return "this is no video that FFmpeg can read, or it is damaged or cut off; copy it again"
    return said


def _lag(container: Any) -> float:
    """Seconds by which the sound starts after the picture (negative: before it)."""
    if not container.streams.audio:
        return 0.0
    starts: dict[str, float] = {}
    for packet in container.demux(video=0, audio=0):
        if packet.pts is not None and packet.stream.type not in starts:
            starts[packet.stream.type] = float(packet.pts * packet.time_base)
        if len(starts) == 2:
            break
    lag = starts["audio"] - starts["video"] if len(starts) == 2 else 0.0
    return lag if abs(lag) >= DELAY else 0.0


def upright(frame: Any) -> Image.Image:
    """A frame as its display matrix says it is to be shown: phones store it as the sensor lies.

    The matrix sends (x, y) to (a x + c y, b x + d y); quarter turns and mirrors occur."""
    from PIL import Image

    image, turn = frame.to_image(), Image.Transpose
    stored = frame.side_data.get("DISPLAYMATRIX")
    if stored is None:
        return image
    a, b, _, c, d = struct.unpack("<5i", bytes(stored)[:20])
    if abs(b) > abs(a):
        image, a, d = image.transpose(turn.TRANSPOSE), c, b
    image = image.transpose(turn.FLIP_LEFT_RIGHT) if a < 0 else image
    return image.transpose(turn.FLIP_TOP_BOTTOM) if d < 0 else image


def _frames(container: Any, seconds: int, start: float) -> tuple[list[Any], bool]:
    """The last frame shown before the middle of each second; the last one again where the video ends early."""
    wanted = [start + second + 0.5 for second in range(seconds)]
    taken: list[Any] = []
    latest: Any = None
    first: float | None = None
    for frame in container.decode(video=0):
        time = float(frame.time if frame.time is not None else 0.0)
        first = time if first is None else first
        while len(taken) < seconds and latest is not None and time - first > wanted[len(taken)]:
            taken.append(upright(latest))
        if len(taken) == seconds:
            return taken, True
        latest = frame
    if latest is None:
        raise ValueError("there is no frame")
    ended = float(latest.time or 0.0) - (first or 0.0)
    if ended < start:
        raise ValueError(f"it ends after {ended:.1f} s")
    whole = len(taken) == seconds or ended >= wanted[-1] - 0.5
    return [*taken, *[upright(latest)] * (seconds - len(taken))], whole


def _sound(container: Any, seconds: int, start: float) -> tuple[np.ndarray, int]:
    """Mono samples from `start` on, at most as many as asked for; silence before its beginning."""
    import av

    resampler = av.AudioResampler(format="fltp", rate=RATE)  # channels are averaged here: FFmpeg would add power
    parts: list[np.ndarray] = []
    count, end = 0, round((start + seconds) * RATE)
    for frame in container.decode(audio=0):
        frame.pts = None  # damaged time stamps would make the resampler stop
        for resampled in resampler.resample(frame):
            parts.append(resampled.to_ndarray().mean(0))
            count += len(parts[-1])
        if count >= end:
            break
    if count < end:
        parts += [rest.to_ndarray().mean(0) for rest in resampler.resample(None)]
    wave = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
    wave = np.concatenate([np.zeros(round(max(-start, 0.0) * RATE)), wave[round(max(start, 0.0) * RATE) : max(end, 0)]])
    wave = np.nan_to_num(wave[: seconds * RATE]).clip(-1, 1).astype(np.float32)
    return wave, len(wave)


def _each(work: Callable[[Path], Any], videos: Sequence[Path], workers: int) -> Iterator[Any]:
    if workers <= 1:
        yield from map(work, videos)
        return
    # Forked, FFmpeg waits for threads that only the parent has.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, videos)


def _note(report: Report, name: str, outcome: dict[str, Any]) -> None:
    if "broken" in outcome:
        report.broken[name] = outcome["broken"]
        return
    report.made += 1
    report.short += [name] if outcome["short"] else []
    report.silent += [name] if outcome["silent"] else []


def _require_unique(videos: Sequence[Path], base: Path) -> None:
    seen: dict[str, Path] = {}
    for video in videos:
        other = seen.setdefault(name_of(video, base), video)
        if other != video:
            raise DataError(f"{other.name} and {video.name} would get the same name", where=str(video.parent))
