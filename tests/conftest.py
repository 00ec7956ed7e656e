"""Options of the whole suite. Its place also lets every test import the tiny models and streams beside it."""

from __future__ import annotations

from pathlib import Path


def pytest_addoption(parser) -> None:
    default = Path(__file__).resolve().parents[2] / "shared" / "golden"
    parser.addoption(
        "--golden", type=Path, default=default, metavar="DIR", help="folder of golden vectors, one folder a system"
    )
