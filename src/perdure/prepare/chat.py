"""Asking a chat model many things, and an OpenAI-compatible endpoint as one (`local` has transformers' models).

Knows requests and replies as texts, rate, retries, and the journal from which an interrupted pass goes on. Does not
know what is asked for. The key is read from the environment and written nowhere.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import http.client
import json
import mimetypes
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from perdure.errors import DataError
from perdure.files.text_files import lines


class EndpointError(DataError):
    """The model cannot be asked at all: no answer, no permission, no such model."""


class RequestFailed(Exception):
    """One request failed for good."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One thing to ask."""

    system: str
    user: str
    image: Path | None = None
    attempt: int = 0
    """Above 0: asked again because the reply could not be used."""

    def key(self, model: str) -> str:
        """What the journal knows it by."""
        said = json.dumps([model, self.system, self.user, str(self.image or ""), self.attempt])
        return hashlib.sha256(said.encode()).hexdigest()[:32]


class Chat(Protocol):
    """A model that answers."""

    name: str

    @property
    def sees(self) -> bool:
        """Whether pictures can be shown to it."""
        ...

    def ask(self, requests: Sequence[Request], reply: Callable[[int, str | None, str], None]) -> None:
        """Calls ``reply(index, text or None, what failed)`` once a request, in any order."""
        ...


@dataclass(kw_only=True)
class Endpoint:
    """An OpenAI-compatible ``/chat/completions``."""

    base_url: str
    """``http://localhost:8000/v1``, ``https://api.openai.com/v1`` ..."""
    name: str
    """The model's name there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; unset: no key is sent."""
    parallel: int = 8
    """Requests under way at a time."""
    per_minute: float | None = None
    """Most requests a minute."""
    timeout: float = 120.0
    """Seconds to wait for a reply."""
    retries: int = 4
    """Further tries after a failure that may pass: no connection, a stall, 408, 409, 429, 5xx, a broken reply."""
    patience: float = 1.0
    """Seconds before the first further try; doubled each time, unless the server says how long."""
    give_up_after: int = 5
    """Requests that fail in a row before the endpoint counts as down."""
    temperature: float = 0.7
    max_tokens: int = 1024
    sees: bool = True
    """Whether the model there takes pictures; false: none are sent."""
    _next: float = field(default=0.0, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        if fault := _address_fault(self.base_url):
            expected = "such as http://localhost:8000/v1"
            raise EndpointError(f"this is no address of an endpoint: {fault}", where=self.base_url, expected=expected)
        limits = {"parallel": (1, 256), "per_minute": (1e-3, 1e6), "timeout": (0.1, 86_400.0)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                option = f"--{name.replace('_', '-')}"
                raise EndpointError(f"is {value:g}", where=option, expected=f"{least:g} to {most:g}")
        if not re.fullmatch(r"[A-Za-z_]\w*", self.key_variable):
            expected = "a name of an environment variable"
            raise EndpointError(f"is {self.key_variable!r}", where="--key-variable", expected=expected)
        key = os.environ.get(self.key_variable, "")
        if not (key.isascii() and key.isprintable()):
            what = "holds a key with characters that no header takes"
            raise EndpointError(what, where=self.key_variable, expected="ASCII on one line")

    def ask(self, requests: Sequence[Request], reply: Callable[[int, str | None, str], None]) -> None:
        """See `Chat`. Raises EndpointError if the endpoint is down or refuses every request."""
        failed_in_a_row = 0
        with ThreadPoolExecutor(self.parallel) as pool:
            futures = {pool.submit(self._one, request): i for i, request in enumerate(requests)}
            try:
                for future in as_completed(futures):
                    text, why = future.result()
                    failed_in_a_row = 0 if text is not None else failed_in_a_row + 1
                    reply(futures[future], text, why)
                    if failed_in_a_row >= self.give_up_after:
                        raise EndpointError(
                            f"{failed_in_a_row} requests failed in a row, the last one with: {why}",
                            where=self.base_url,
                            todo="What was answered is kept; run the same command again to go on.",
                        )
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, request: Request) -> tuple[str | None, str]:
        why, wait = "", self.patience
        try:
            content = _content(request)
        except OSError as error:
            return None, f"the image {request.image} cannot be read ({error.strerror})"
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(wait)
                wait *= 2
            self._keep_rate()
            try:
                return self._post(request.system, content), ""
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code}: {_first_line(error)}"
                if error.code in (400, 413, 422):
                    return None, why  # this one request is at fault
                if error.code not in (408, 409, 429) and error.code < 500:
                    raise EndpointError(why, where=self.base_url, todo=self._advice(error.code)) from None
                wait = max(wait, _seconds(error.headers.get("Retry-After")))
            except (TimeoutError, urllib.error.URLError, http.client.HTTPException, OSError) as error:
                why = f"no answer ({getattr(error, 'reason', None) or error or type(error).__name__})"
            except RequestFailed as error:
                why = str(error)
        return None, f"{why} ({self.retries + 1} tries)"

    def _post(self, system: str, content: Any) -> str:
        body = {
            "model": self.name,
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": content},
            ],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        url = self.base_url.rstrip("/") + "/chat/completions"
        posted = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(posted, timeout=self.timeout) as answer:
            raw = answer.read()
        try:
            text = json.loads(raw)["choices"][0]["message"]["content"]
            if isinstance(text, str):
                text.encode()  # a lone surrogate could not be kept
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise RequestFailed(f"the reply is no chat completion: {raw[:80]!r}") from None
        if not isinstance(text, str):
            raise RequestFailed("the reply holds no text")
        return text

    def _keep_rate(self) -> None:
        if self.per_minute is None:
            return
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now) + 60 / self.per_minute
            wait = self._next - 60 / self.per_minute - now
        time.sleep(max(0.0, wait))

    def _advice(self, code: int) -> str:
        if code in (401, 403):
            return f"Put a valid key into the environment variable {self.key_variable}."
        return f"Check the address and whether it serves a model called {self.name}."


def _address_fault(address: str) -> str:
    """What is wrong with the address of an endpoint; empty if nothing."""
    if not (address.isascii() and address.isprintable()) or " " in address:
        return "it holds a character that no address has"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError as fault:  # a port that is none, brackets that do not close
        return str(fault).lower()
    if parts.scheme not in ("http", "https"):
        return "it does not begin with http:// or https://"
    if port == 0 or not host or any(not 0 < len(label) < 64 for label in host.removesuffix(".").split(".")):
        return "it names no host"
    return ""


class Journal:
    """Replies as they come, one JSON line each; a later pass asks only for the others."""

    def __init__(self, path: Path | None = None) -> None:
        """`path`: None keeps replies in memory only."""
        self.path = path
        self.replies: dict[str, str] = {}
        kept = lines(path.read_text("utf-8", errors="replace")) if path is not None and path.is_file() else []
        for line in kept:
            try:
                entry = json.loads(line)
                self.replies[entry["key"]] = entry["text"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue  # the last line of a pass that was killed
        self._torn = path is not None and bool(kept) and not path.read_bytes().endswith(b"\n")

    def add(self, key: str, text: str) -> None:
        """Keep a reply, at once."""
        self.replies[key] = text
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            entry = json.dumps({"key": key, "text": text}, ensure_ascii=False)
            file.write(("\n" if self._torn else "") + entry + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._torn = False


def ask_all(chat: Chat, requests: Sequence[Request], journal: Journal) -> list[tuple[str | None, str]]:
    """(reply or None, what failed) of every request; those in the journal are not asked again."""
    found: list[tuple[str | None, str]] = [(None, "not asked")] * len(requests)
    keys = [request.key(chat.name) for request in requests]
    todo = []
    for i, key in enumerate(keys):
        if key in journal.replies:
            found[i] = (journal.replies[key], "")
        else:
            todo.append(i)

    def reply(place: int, text: str | None, why: str) -> None:
        i = todo[place]
        found[i] = (text, why)
        if text is not None:
            journal.add(keys[i], text)

    if todo:
        chat.ask([requests[i] for i in todo], reply)
    return found


def _content(request: Request) -> Any:
    if request.image is None:
        return request.user
    if not request.image.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no such file", str(request.image))
    kind = mimetypes.guess_type(request.image.name)[0] or "image/jpeg"
    data = base64.b64encode(request.image.read_bytes()).decode()
    return [
        {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}},
        {"type": "text", "text": request.user},
    ]


def _first_line(error: urllib.error.HTTPError) -> str:
    try:
        lines = error.read(500).decode("utf-8", "replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[0][:200] if lines else str(error.reason)


def _seconds(header: str | None) -> float:
    return min(60.0, float(header)) if header and header.replace(".", "", 1).isdigit() else 0.0
