"""Options and surroundings of the whole suite: no network, no terminal, one thread in each of several workers.

Its place also lets every test import what lies beside it.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub, and for every child process
os.environ.pop("COLUMNS", None)  # a test that needs a width states it; pytest-xdist's workers have one
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch: there is a worker for each core


def pytest_addoption(parser) -> None:
    default = Path(__file__).resolve().parents[2] / "shared" / "golden"
    parser.addoption(
        "--golden", type=Path, default=default, metavar="DIR", help="folder of golden vectors, one folder a system"
    )


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Connections and look-ups of names beyond this machine fail the test that asks for them."""
    with pytest.MonkeyPatch.context() as patch:
        for method in ("connect", "connect_ex"):
            patch.setattr(socket.socket, method, _only_here(getattr(socket.socket, method)))
        look_up = socket.getaddrinfo

        def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
            _refuse_beyond(host)
            return look_up(host, *args, **kwargs)

        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


def _only_here(connect: Any) -> Any:
    def guarded(self: socket.socket, address: Any) -> Any:
        if isinstance(address, tuple):  # a Unix socket has a path
            _refuse_beyond(address[0])
        return connect(self, address)

    return guarded


def _refuse_beyond(host: Any) -> None:
    """Not an exception that code under test would take for a missing network."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", socket.gethostname()):
        return
    try:
        here = ipaddress.ip_address(name).is_loopback or ipaddress.ip_address(name).is_unspecified
    except ValueError:
        here = False
    if not here:
        pytest.fail(f"a test asked for the network: {name}")


@pytest.fixture(scope="session")
def vlm_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `tests.tiny_vlm.folder` writes its checkpoints, each once a session."""
    return tmp_path_factory.mktemp("vlm")
