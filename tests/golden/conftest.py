"""The golden vectors: arrays that the published code produced, read from the folder `--golden`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def golden(request) -> Callable[[str], Path]:
    """``golden("mgclip")`` is the folder of a system's vectors; the test is skipped where there is none."""

    def folder(system: str) -> Path:
        root = request.config.getoption("--golden")
        if not (root / system).is_dir():
            pytest.skip(f"no golden vectors of {system} in {root} (give --golden DIR)")
        return root / system

    return folder
