"""A run behind HTTP: `perdure serve`. Needs the extra `serve`.

Knows what must be installed, and the server. The endpoints are in `perdure.serving.app`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from perdure.errors import MissingExtra

if TYPE_CHECKING:
    from perdure.serving.app import Settings


def require() -> None:
    """Raise MissingExtra unless what serving needs is installed."""
    from importlib.util import find_spec

    lacking = [n for n in ("starlette", "uvicorn", "python_multipart", "prometheus_client") if find_spec(n) is None]
    if lacking:
        raise MissingExtra(f"serving needs {', '.join(lacking)}", todo='Type: pip install "perdure[serve]"')


def serve(address: str | Path, settings: Settings, *, host: str, port: int) -> None:
    """Serve a run until the process is told to stop; what was accepted is answered first."""
    import uvicorn

    from perdure.serving.app import make

    app = make(address, settings)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="info",
        access_log=False,
        server_header=False,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=30,
        limit_concurrency=1024,
    )
