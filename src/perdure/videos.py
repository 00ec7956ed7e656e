"""Frames of one video, evenly spaced, from wherever they are: a video file, a folder of frames, or a list of them.

Knows video files through PyAV, and that frames of one video are of one size. Does not know models, sound or data sets;
pixels of single frames are `images`' affair. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import MissingExtra, UnreadableExample
from perdure.images import find_images, open_image

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset([".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".3gp"])
"""Of files that are taken for videos."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Some frames of a video."""

    images: tuple[Image.Image, ...]
    """RGB, all of one size."""
    places: tuple[int, ...]
    """Of each among all frames of the video."""
    total: int
    """Frames of the whole video."""
    rate: float
    """Frames a second of the whole video."""


def is_video(path: str | os.PathLike[str]) -> bool:
    """By its suffix alone."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def require_av() -> None:
    """Raise MissingExtra if video files cannot be read."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise MissingExtra("reading videos needs PyAV", todo='Type: pip install "perdure[video]"') from None


def evenly(count: int, total: int) -> tuple[int, ...]:
    """Places of `count` frames among `total`: the middle one of each of `count` equal parts; some come again where
    there are fewer."""
    return tuple((2 * i + 1) * total // (2 * count) for i in range(count))


def frames(value: Any, count: int, *, rate: float = 1.0, where: str = "") -> Frames:
    """`count` frames of a video.

    Args:
        value: a video file; a folder, whose images are the frames by name; or a list of what `open_image` takes.
        count: how many.
        rate: frames a second, of lists and folders; a file says it itself.
        where: what to call it in an error (an example's id).

    Raises:
        UnreadableExample: missing, broken, without frames, or with frames of different sizes.
        MissingExtra: it is a file, and PyAV is not installed.
    """
    if isinstance(value, (str, os.PathLike)):
        path = Path(value)
        where = str(path) if str(path).endswith(where) else f"{where} ({path})"
        if not path.is_dir():
            return _of_file(path, count, where)
        value = list(find_images([path]))
    if not isinstance(value, Sequence) or not len(value):
        expected = "a video file, a folder of frames, or a list of frames"
        raise UnreadableExample("there are no frames", where=where or "video", expected=expected)
    places = evenly(count, len(value))
    images = {
        i: open_image(value[i], where=where if not isinstance(value[i], (str, os.PathLike)) else "")
        for i in dict.fromkeys(places)
    }
    return _made([images[i] for i in places], places, len(value), rate, where)


def _made(images: list[Image.Image], places: tuple[int, ...], total: int, rate: float, where: str) -> Frames:
    if sizes := sorted({image.size for image in images} - {images[0].size}):
        one, other = ("{} x {}".format(*size) for size in (images[0].size, sizes[0]))
        raise UnreadableExample(f"frames of {one} and of {other} pixels", where=where, expected="one size")
    return Frames(images=tuple(images), places=places, total=total, rate=rate)


def _of_file(path: Path, count: int, where: str) -> Frames:
    """Of a video file: its packets are counted first, then it is decoded up to the last frame that is wanted."""
    if not path.is_file():
        raise UnreadableExample("there is no such file", where=where, expected="a video, or a folder of frames")
    require_av()
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0) or 24.0
            total = sum(packet.size > 0 for packet in container.demux(stream))
        places = evenly(count, total) if total else ()
        found: dict[int, Any] = {}
        last = None
        with av.open(str(path)) as container:
            for i, frame in enumerate(container.decode(video=0)):
                if i in places:
                    found[i] = last = frame.to_image()
                if places and i >= places[-1]:
                    break
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        reason = (
            "there is no picture in it" if isinstance(error, IndexError) else getattr(error, "strerror", "") or error
        )
        raise UnreadableExample(f"the video cannot be read ({reason})", where=where, expected="a whole video") from None
    if last is None:
        raise UnreadableExample("there are no frames in it", where=where, expected="a whole video")
    # a container may count a few frames more than it gives
    return _made([found.get(i, last) for i in places], places, total, rate, where)
