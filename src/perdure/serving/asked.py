"""A request's body as inputs of a model: images and texts, within limits of size, number, type and time.

Knows multipart forms, JSON with base64, and a bare image. Follows no address and no path that a request names.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from perdure.errors import DataError
from perdure.files.text_files import parse_json
from perdure.images import UnreadableExample, image_size
from perdure.serving.batching import FORMATS

MOST_TEXT = 10_000
"""Characters of a question."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may bring."""

    megabytes: int = 20
    """Of a whole request."""
    megapixels: int = 50
    """Of all its images together: a small file can hold a large picture."""
    inputs: int = 64
    """Images or texts."""
    seconds: float = 30.0
    """For the upload."""


@dataclass
class Input:
    """An image, a text, or both; or what is wrong with it."""

    image: bytes | None = None
    text: str = ""
    error: str = ""
    more: tuple[bytes, ...] = ()
    """Further images of a conversation; where there are some, texts say ``<image>`` where each stands."""
    said: tuple[tuple[str, str], ...] = ()
    """Earlier turns: who (`human`, `gpt`) said what."""

    @property
    def images(self) -> tuple[bytes, ...]:
        """All of them."""
        return self.more if self.image is None else (self.image, *self.more)

    @property
    def name(self) -> str:
        """Digest: the same input is the same to the method, in whatever request it comes."""
        turns = "\0".join(text for turn in self.said for text in turn) + "\0" if self.said else ""
        said = b"\0".join([self.image or b"", *self.more]) + b"\0" + (turns + self.text).encode()
        return hashlib.blake2b(said, digest_size=16).hexdigest()


@dataclass
class Asked:
    """What a request asks."""

    inputs: list[Input] = field(default_factory=list)
    top: int = 5
    task: str = ""
    label: str = ""
    """Of feedback."""


async def read(request: Request, limits: Limits) -> Asked:
    """The inputs of a request.

    Raises:
        HTTPException: 400 malformed, 408 too slow, 413 too large or too many, 415 another type.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    try:
        async with asyncio.timeout(limits.seconds):
            if kind == "multipart/form-data":
                asked = await _form(request, limits)
            elif kind == "application/json":
                asked = _json(await _body(request, limits), limits)
            elif kind.startswith("image/") or kind == "application/octet-stream":
                asked = Asked([Input(image=await _body(request, limits))])
            else:
                raise HTTPException(415, "expected multipart/form-data, application/json or image/*")
    except TimeoutError:
        raise HTTPException(408, f"the upload took more than {limits.seconds:g} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "the client left") from None
    _options(asked, request.query_params, limits)
    if not asked.inputs:
        raise HTTPException(400, "there is no image and no text")
    if len(asked.inputs) > limits.inputs:
        raise HTTPException(413, f"{len(asked.inputs)} inputs; at most {limits.inputs} a request")
    return asked


async def read_json(request: Request, limits: Limits) -> Any:
    """A request's body as JSON.

    Raises:
        HTTPException: 400 malformed, 408 too slow, 413 too large, 415 another type.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "expected application/json")
    try:
        async with asyncio.timeout(limits.seconds):
            return _parsed(await _body(request, limits))
    except TimeoutError:
        raise HTTPException(408, f"the upload took more than {limits.seconds:g} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "the client left") from None


def decoded(one: dict[str, Any], shared: Any = "") -> Input:
    """An input of a JSON body: ``image`` as base64 or a data URL, ``text``.

    Raises:
        HTTPException: 400 no base64, 413 too long a text.
    """
    image, text = one.get("image"), _text(one.get("text", shared))
    if image is None:
        return Input(text=text)
    if not isinstance(image, str):
        raise HTTPException(400, "an image is no base64 text")
    said = image.partition(",")[2] if image.startswith("data:") else image
    try:
        return Input(image=base64.b64decode(said, validate=True), text=text)
    except (binascii.Error, ValueError):
        raise HTTPException(400, "an image is no base64 (addresses and paths are not followed)") from None


def look(asked: Asked, limits: Limits) -> None:
    """Mark the inputs that are no image, by their headers; no pixel is decoded.

    Raises:
        HTTPException: 413: too many pixels altogether.
    """
    pixels = 0
    for one in asked.inputs:
        if one.error:
            continue
        try:
            limit = limits.megapixels * 10**6
            for image in one.images:
                width, height = image_size(image, where="image", pixel_limit=limit, formats=FORMATS)
                pixels += width * height
        except UnreadableExample as error:
            one.error = error.what
    if pixels > limits.megapixels * 10**6:
        raise HTTPException(413, f"{pixels:,} pixels altogether; at most {limits.megapixels} million a request")


async def _stream(request: Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    most, count = limits.megabytes * 2**20, 0
    stated = request.headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > most:
        raise HTTPException(413, f"at most {limits.megabytes} MB a request")
    async for chunk in request.stream():
        count += len(chunk)
        if count > most:
            raise HTTPException(413, f"at most {limits.megabytes} MB a request")
        yield chunk


async def _body(request: Request, limits: Limits) -> bytes:
    return b"".join([chunk async for chunk in _stream(request, limits)])


async def _form(request: Request, limits: Limits) -> Asked:
    parser = MultiPartParser(
        request.headers,
        _stream(request, limits),
        max_files=limits.inputs,
        max_fields=limits.inputs,
        max_part_size=limits.megabytes * 2**20,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, KeyError, LookupError) as error:
        raise HTTPException(400, f"malformed form: {getattr(error, 'message', error)}") from None
    async with _closing(form):
        text = str(form.get("ask") or form.get("text") or "")
        files = [part for name, part in form.multi_items() if isinstance(part, UploadFile)]
        inputs = [Input(image=await part.read(), text=_text(text)) for part in files]
        if not files and text:
            inputs = [Input(text=_text(text))]
        asked = Asked(inputs)
        _options(asked, {k: v for k, v in form.items() if isinstance(v, str)}, limits)
        return asked


class _closing:
    """Removes what a form's large parts have put on disk."""

    def __init__(self, form: Any) -> None:
        self.form = form

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: Any) -> None:
        await self.form.close()


def _parsed(body: bytes) -> Any:
    try:
        return parse_json(body.decode("utf-8-sig"), where="body")
    except (UnicodeDecodeError, DataError) as error:
        raise HTTPException(400, f"the body is no JSON ({getattr(error, 'what', error)})") from None


def _json(body: bytes, limits: Limits) -> Asked:
    content = _parsed(body)
    if not isinstance(content, dict):
        raise HTTPException(400, 'expected {"inputs": [{"image": base64, "text": ...}]}')
    listed = content.get("inputs", [{k: content[k] for k in ("image", "text") if k in content}])
    if not isinstance(listed, list) or not all(isinstance(one, dict) and one for one in listed):
        raise HTTPException(400, 'expected {"inputs": [{"image": base64, "text": ...}]}')
    if len(listed) > limits.inputs:
        raise HTTPException(413, f"{len(listed)} inputs; at most {limits.inputs} a request")
    shared = content.get("ask", "")
    asked = Asked([decoded(one, shared) for one in listed])
    _options(asked, {k: content[k] for k in ("top", "task", "label") if k in content}, limits)
    return asked


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise HTTPException(400, "a text is no text")
    if len(value) > MOST_TEXT:
        raise HTTPException(413, f"a text of {len(value)} characters; at most {MOST_TEXT}")
    return value


def _options(asked: Asked, said: Any, limits: Limits) -> None:
    """``top``, ``task`` and ``label``, from the query, a form or JSON."""
    if "top" in said:
        value = said["top"]
        top = (
            int(value)
            if isinstance(value, int) or (isinstance(value, str) and value.isdecimal() and len(value) < 7)
            else 0
        )
        if not 1 <= top <= 10**6 or isinstance(value, bool):
            raise HTTPException(400, "`top` is no number from 1")
        asked.top = top
    for name in ("task", "label"):
        if name in said:
            setattr(asked, name, _text(said[name]))
