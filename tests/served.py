"""A server over tiny models in this process, asked over a real socket."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image


@dataclass
class Client:
    """Asks one server."""

    port: int

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, Mapping[str, str]]:
        """(status, the JSON of the answer or its bytes, headers)"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body or None, dict(headers or {}))
            response = connection.getresponse()
            data, said = response.read(), {name.lower(): value for name, value in response.getheaders()}
            is_json = said.get("content-type", "").startswith("application/json")
            return response.status, json.loads(data) if is_json else data, said
        finally:
            connection.close()

    def json(self, content: Any, path: str = "/predict") -> tuple[int, Any]:
        status, answer, _ = self.ask("POST", path, json.dumps(content).encode(), {"Content-Type": "application/json"})
        return status, answer

    def form(self, *parts: tuple[str, bytes | str], path: str = "/predict", **headers: str) -> tuple[int, Any]:
        """Bytes are files, text is text."""
        kind, body = multipart(parts)
        status, answer, _ = self.ask("POST", path, body, {"Content-Type": kind, **headers})
        return status, answer


def multipart(parts: Any) -> tuple[str, bytes]:
    lines = []
    for name, value in parts:
        file = '; filename="a.png"' if isinstance(value, bytes) else ""
        data = value if isinstance(value, bytes) else value.encode()
        lines += [b"--edge", f'Content-Disposition: form-data; name="{name}"{file}'.encode(), b"", data]
    return "multipart/form-data; boundary=edge", b"\r\n".join([*lines, b"--edge--", b""])


@contextlib.contextmanager
def serving(app: Any) -> Iterator[Client]:
    """The application behind a free port of this machine."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", server_header=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield Client(port)
    finally:
        server.should_exit = True
        thread.join(30)
        app.state.service.close()


def picture(seed: int, size: tuple[int, int] = (20, 16), form: str = "PNG") -> bytes:
    """Noise, encoded."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, form)
    return stored.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()
