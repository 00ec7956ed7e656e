"""`perdure serve`: a run answers over HTTP, and goes over to each newly promoted version.

Knows arguments. Does not know requests.
"""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from perdure.cli import _complete
from perdure.cli._layout import libraries_aside

EXAMPLES = """
perdure serve runs/mg_clip-microworld/seed_0
perdure serve runs/mg_clip-microworld/seed_0@3 --port 9000
perdure serve runs/sefe-microworld/seed_0 --host 0.0.0.0 --allow-host models.example.org --token-file token.txt
"""


Run = Annotated[
    Path,
    typer.Argument(help="folder of a run; RUN@3 stays with version 3", metavar="RUN", autocompletion=_complete.runs),
]
Wait = Annotated[float, typer.Option("--max-wait-ms", min=0, max=10_000, help="milliseconds a batch waits for more")]
Megapixels = Annotated[int, typer.Option("--max-megapixels", min=1, max=1000, help="million pixels in a request")]
Swap = Annotated[
    Literal["beside", "drain"],
    typer.Option("--swap", help="load a new version beside the old one, or after it is gone"),
]
Stateful = Annotated[bool, typer.Option("--stateful", help="allow answers that depend on earlier requests")]
Shadow = Annotated[str, typer.Option("--shadow", help="ask candidate, or version N, beside; answers are compared")]
Hosts = Annotated[list[str] | None, typer.Option("--allow-host", help="a further name of this server")]


def command(
    run: Run,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="port")] = 8080,
    host: Annotated[str, typer.Option("--host", help="address to listen at; 0.0.0.0: all")] = "127.0.0.1",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, xpu or mps")] = "auto",
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, max=4096, help="inputs a batch")] = 16,
    max_wait_ms: Wait = 5.0,
    queue: Annotated[int, typer.Option("--queue", min=1, max=10**6, help="inputs that may wait; more get 503")] = 256,
    max_mb: Annotated[int, typer.Option("--max-mb", min=1, max=1024, help="megabytes a request may have")] = 20,
    max_megapixels: Megapixels = 50,
    keep: Annotated[int, typer.Option("--keep", min=0, max=16, help="other versions that may be asked, and stay")] = 1,
    swap: Swap = "beside",
    inbox: Annotated[bool, typer.Option("--inbox", help="take feedback: write RUN/inbox")] = False,
    stateful: Stateful = False,
    shadow: Shadow = "",
    allow_promote: Annotated[bool, typer.Option("--allow-promote", help="who has the token may promote")] = False,
    token_file: Annotated[Path | None, typer.Option("--token-file", help="file with a token to ask for")] = None,
    allow_host: Hosts = None,
) -> None:
    """Answer over HTTP: POST /predict and /v1/chat/completions, GET /health, /versions, /metrics, and a page at /.

    Listens at this machine alone unless --host says otherwise. Nothing is sent anywhere. A version that is promoted
    meanwhile takes over between two batches; one that cannot be used is named in /health, and the old one goes on.
    """
    from perdure import serving

    serving.require()
    token = _token(token_file)
    _require_sound(shadow, promotes=allow_promote, token=token)
    with libraries_aside():
        from perdure.serving.app import Settings
        from perdure.serving.asked import Limits
    settings = Settings(
        device=device,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        queue=queue,
        keep=keep,
        drain=swap == "drain",
        stateful=stateful,
        inbox=inbox,
        promote=allow_promote,
        shadow=shadow,
        token=token,
        hosts=(*Settings.hosts, *_names(host), *(allow_host or ())),
        limits=Limits(megabytes=max_mb, megapixels=max_megapixels),
    )
    if not _loopback(host) and not token:
        print(f"{host}: whoever reaches this machine may ask; --token-file asks for a token", file=sys.stderr)
    serving.serve(run, settings, host=host, port=port)


def _require_sound(shadow: str, *, promotes: bool, token: str) -> None:
    from perdure.errors import RecipeError

    if promotes and not token:
        raise RecipeError("anyone could promote", where="--allow-promote", expected="a token", todo="Add --token-file.")

    if shadow not in ("", "candidate") and not shadow.isdecimal():
        raise RecipeError(f"is {shadow!r}", where="--shadow", expected="candidate, or a version's number")


def _token(file: Path | None) -> str:
    from perdure.errors import RecipeError
    from perdure.files.text_files import read_text

    if file is None:
        return ""
    token = read_text(file, error=RecipeError, most=4096).strip()
    if len(token) < 16 or not token.isascii():
        raise RecipeError("holds no token", where=str(file), expected="at least 16 ASCII characters")
    return token


def _names(host: str) -> list[str]:
    """What a browser says to reach this host; an address of all interfaces is no name."""
    return [] if host in ("0.0.0.0", "::") else [host, f"[{host}]"]


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
