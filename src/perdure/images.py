"""One image, from wherever it is, as a PIL image in RGB.

Knows files, bytes, arrays and what has ``read_bytes()`` (an image within a larger file, read when asked for), and every
way in which a picture can be broken. Does not know data sets, labels or transforms, and imports no torch.

Pixels are those of ``PIL.Image.open(path).convert("RGB")``, as in the code that published numbers come
from: an alpha channel is dropped (not blended with a background) and EXIF orientation is **not** applied.
The one exception: 16-bit grey, which that conversion turns almost white, is scaled to 8 bits. Of an animation the first
frame is taken. `changes` says which of this befalls an image.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import UnreadableExample

if TYPE_CHECKING:
    from PIL import Image

HEIF = frozenset([".heic", ".heif"])
"""What telephones write; read where pillow-heif is installed, and refused by name where not."""
SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"]) | HEIF
"""Of files that are taken for images where a folder is looked through."""
PIXEL_LIMIT = 89_478_485
"""Most pixels an image may have (a quarter GiB of RGB): above, a small file is probably made to fill memory."""


class NamedImage(str):
    """An image among a query's candidates: a text (its id) that brings the picture along.

    `image` is whatever `open_image` takes; by default the text is its path.
    """

    image: Any

    def __new__(cls, name: str, image: Any = None) -> NamedImage:
        made = super().__new__(cls, name)
        made.image = name if image is None else image
        return made

    def __deepcopy__(self, memo: Any) -> NamedImage:
        return self


def is_image(path: str | os.PathLike[str]) -> bool:
    """By its suffix alone."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def find_images(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Files as they are given, and the images in folders and below, sorted."""
    for path in map(Path, paths):
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if is_image(p))
        else:
            yield path


def open_image(
    value: Any, *, where: str = "", pixel_limit: int = PIXEL_LIMIT, formats: Iterable[str] | None = None
) -> Image.Image:
    """The image as RGB, decoded.

    Args:
        value: a path; the bytes of a file; what has ``read_bytes()``; a uint8 array ``[height, width]``,
            ``[height, width, 1 | 3 | 4]``; or a PIL image.
        where: what to call it in an error (an example's id); a path is named without it.
        pixel_limit: refuse images of more pixels, before they are decoded.
        formats: the only ones that are read, as Pillow calls them; None: all.

    Raises:
        UnreadableExample: missing, empty, truncated, not an image, or too large.
    """
    from PIL import Image

    if isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(value, "read_bytes"):
        source, where = _source(value, where)
        with _opened(source, where, pixel_limit, formats) as image:
            return _rgb(image, where, pixel_limit)
    if isinstance(value, Image.Image):
        return _rgb(value, where or "image", pixel_limit)
    return _from_array(value, where or "image", pixel_limit)


CHANGES = {
    "orientation": "an EXIF mark says to turn it, which a run does not do",
    "cmyk": "CMYK, converted to RGB",
    "16 bit": "16 bit, scaled to 8",
    "palette": "palette, converted to RGB",
    "alpha": "alpha channel, dropped",
    "frames": "several frames or pages, the first is taken",
}
"""What `changes` finds -> in words."""


def changes(value: Any, *, where: str = "", pixel_limit: int = PIXEL_LIMIT) -> tuple[list[str], tuple[int, int]]:
    """What `open_image` does to an encoded image that its owner may not expect, as keys of `CHANGES`, and its size
    ``(width, height)``; from the header alone. Raises as `open_image` does."""
    source, where = _source(value, where)
    with _opened(source, where, pixel_limit) as image:
        try:
            marked = "exif" in image.info or image.format in ("JPEG", "MPO", "TIFF", "WEBP")  # a PNG would be decoded
            turned = marked and image.getexif().get(0x0112, 1) not in (0, 1)
            moving = getattr(image, "is_animated", False)
        except _BROKEN as error:
            raise UnreadableExample(f"the header is damaged ({error})", where=where) from None
        found = {
            "orientation": turned,
            "cmyk": image.mode == "CMYK",
            "16 bit": image.mode.startswith("I"),
            "palette": image.mode == "P" and not moving,
            "alpha": image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
            "frames": moving,
        }
        return [key for key, there in found.items() if there], image.size


def encoded_as(data: bytes) -> str:
    """Pillow's name of the format of an image's bytes: JPEG, PNG ... Raises as `open_image` does."""
    with _opened(io.BytesIO(data), "image", PIXEL_LIMIT) as image:
        return image.format or ""


def image_size(
    value: Path | bytes, *, where: str = "", pixel_limit: int = PIXEL_LIMIT, formats: Iterable[str] | None = None
) -> tuple[int, int]:
    """``(width, height)`` from the header alone; no pixel is decoded. Raises as `open_image` does."""
    source, where = _source(value, where)
    with _opened(source, where, pixel_limit, formats) as image:
        return image.size


def _source(value: Any, where: str) -> tuple[Any, str]:
    """What Pillow opens, and what to call it in an error."""
    if not isinstance(value, (str, os.PathLike, bytes, bytearray, memoryview)):
        try:
            value = value.read_bytes()
        except OSError as error:
            raise UnreadableExample(f"the bytes cannot be read ({error})", where=where or str(value)) from None
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
        where = where or f"image of {len(data)} bytes"
        if not data:
            raise UnreadableExample("there are no bytes", where=where, expected="an image file's bytes")
        return io.BytesIO(data), where
    path = Path(value)
    where = str(path) if str(path).endswith(where) else f"{where} ({path})"
    _check_file(path, where)
    return path, where


def _check_file(path: Path, where: str) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        advice = "" if path.parent.is_dir() else f"The folder {path.parent} is missing, too: is it the right one?"
        raise UnreadableExample("there is no such file", where=where, expected="an image", todo=advice) from None
    except (OSError, ValueError) as error:
        raise UnreadableExample(f"the file cannot be reached ({error})", where=where) from None
    if path.is_dir():
        raise UnreadableExample("this is a folder", where=where, expected="an image file")
    if size == 0:
        raise UnreadableExample(
            "the file is empty (0 bytes)", where=where, expected="an image", todo="Copy it again, or remove it."
        )


# What Pillow's decoders raise for damaged input, besides its own errors.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError)


@cache
def _quiet() -> None:
    """Pillow warns of sizes (an error here) and of palettes with transparency (as good as any other); and HEIC is
    opened by a package of its own, where that is installed."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", message="Palette images with Transparency")
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()


def _opened(source: Any, where: str, pixel_limit: int, formats: Iterable[str] | None = None) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    _quiet()
    if formats is not None:
        Image.init()
        formats = [name for name in formats if name in Image.OPEN]
    try:
        image = Image.open(source, formats=formats)
    except UnidentifiedImageError:
        if _is_heif(source):
            todo = 'Type: pip install "perdure[heic]"; or write it as JPEG.'
            raise UnreadableExample("this is HEIC, and pillow-heif is not installed", where=where, todo=todo) from None
        raise UnreadableExample("this is not an image", where=where, expected="a JPEG, a PNG or the like") from None
    except Image.DecompressionBombError:
        raise _too_large("too many pixels to open", where, pixel_limit) from None
    except PermissionError:
        raise UnreadableExample("the file may not be read", where=where, todo=f"Try: chmod +r {where}") from None
    except _BROKEN as error:
        raise UnreadableExample(f"the header is damaged ({error})", where=where) from None
    width, height = image.size
    if width * height > pixel_limit:
        raise _too_large(f"{width} x {height} pixels", where, pixel_limit)
    if width * height == 0:
        raise UnreadableExample(f"{width} x {height} pixels", where=where, expected="at least one pixel")
    return image


def _is_heif(source: Any) -> bool:
    """By the first bytes: an ISO media file whose brand is HEIF's."""
    if isinstance(source, io.BytesIO):
        head = source.getvalue()[:12]
    else:
        with source.open("rb") as file:
            head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf")


def _too_large(found: str, where: str, limit: int) -> UnreadableExample:
    return UnreadableExample(
        found, where=where, expected=f"at most {limit:,} pixels", todo="Make it smaller before use."
    )


def _rgb(image: Image.Image, where: str, pixel_limit: int) -> Image.Image:
    try:
        if image.mode.startswith("I"):
            return _eight_bits(image).convert("RGB")
        return image.convert("RGB")  # loads all pixels; of an animation, the first frame
    except MemoryError:
        raise _too_large("not enough memory to decode it", where, pixel_limit) from None
    except _BROKEN as error:
        raise UnreadableExample(
            f"the image is truncated or damaged ({error})", where=where, expected="a whole image"
        ) from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (modes I;16, I) to 8 bits by the high byte: 65535 -> 255, 256 -> 1."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    if values.max(initial=0) > 255 or image.mode != "I":
        values = values >> 8
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _from_array(value: Any, where: str, pixel_limit: int) -> Image.Image:
    import numpy as np
    from PIL import Image

    expected = "a path, bytes, or a uint8 array [height, width, 3]"
    if not isinstance(value, np.ndarray):
        raise UnreadableExample(f"a {type(value).__name__} is not an image", where=where, expected=expected)
    array = value[..., 0] if value.ndim == 3 and value.shape[-1] == 1 else value
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))
    if array.dtype != np.uint8 or not shaped or array.size == 0:
        found = f"an array of {value.dtype} {list(value.shape)}"
        raise UnreadableExample(found, where=where, expected=expected)
    if array.shape[0] * array.shape[1] > pixel_limit:
        raise _too_large(f"{array.shape[1]} x {array.shape[0]} pixels", where, pixel_limit)
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
