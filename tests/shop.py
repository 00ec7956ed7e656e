"""A separate package that adds names to perdure by entry points, written to a folder by tests."""

from __future__ import annotations

import sys
from pathlib import Path

METHOD = '''"""Wobble: a method of another package.

Needs: 1 GB GPU memory.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import wobble_heavy
from pydantic import Field

from wobblekit.shared import HALF, Decay

EPOCHS = 3


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of Wobble."""

    lr: Annotated[float, Field(gt=0)] = HALF
    """Learning rate,
    of the only stage."""
    epochs: int | Literal["auto"] = EPOCHS
    """Passes."""
    decay: Decay = Decay()
    """Decay of weights."""
    labels: tuple[str, ...] = ()
    """Words."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Passes at a low rate."""
    deep: dict[str, float] | None = None
    """Anything by name."""

    def faults(self) -> Iterator[tuple[str, str]]:
        if self.epochs != "auto" and self.warmup > self.epochs:
            yield "warmup", f"must not exceed epochs ({self.epochs})"


class Wobble:
    Config = Config
    answers = frozenset({"classify", "answer"})

    def __init__(self, config, *, clip, reward=None):
        self.config, self.clip, self.reward = config, clip, reward
'''

SHARED = """import wobble_heavy
from dataclasses import dataclass

HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class Decay:
    weight: float = 0.1
"""

STREAM = '''"""Steps: a stream of another package."""
from dataclasses import dataclass
from typing import Annotated

from perdure.settings.config import Named
from perdure.types import Stream, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the stream."""

    data: Annotated[Named, "data"]
    """What is cut."""
    kind: str = "classify"
    """Kind of the tasks."""


def build(config):
    return Stream(name="steps", tasks=(Task(index=0, name="one", kind=config.kind),))
'''

DATA = '''"""Crumbs: a data set of another package."""
from dataclasses import dataclass
from pathlib import Path

from perdure.types import Dataset


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the reader."""

    root: Path = Path("crumbs")
    """Folder."""
    size: int = 32
    """Pixels."""


def read(config):
    return Dataset(name="crumbs", kind="classify", facts={"root": str(config.root), "size": config.size})
'''

MODEL = '''"""Cube: a model of another package."""
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the model."""

    weights: str = "tiny"
    """Which."""


def load(config):
    return ("cube", config.weights)
'''

FILES = {
    "wobblekit/__init__.py": "raise ImportError('the package was imported')\n",
    "wobblekit/wobble.py": METHOD,
    "wobblekit/shared.py": SHARED,
    "wobblekit/steps.py": STREAM,
    "wobblekit/crumbs.py": DATA,
    "wobblekit/cube.py": MODEL,
    "wobblekit-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: wobblekit\nVersion: 1.0\n",
    "wobblekit-1.0.dist-info/entry_points.txt": """[perdure.methods]
wobble = wobblekit.wobble
[perdure.streams]
steps = wobblekit.steps
[perdure.data]
crumbs = wobblekit.crumbs
[perdure.models]
cube = wobblekit.cube
""",
}


def write(folder: Path, *, importable: bool = False) -> Path:
    """The package in `folder`; unless `importable`, importing any of it fails."""
    for name, text in FILES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if importable:
            text = text.replace("import wobble_heavy\n", "") if file.name != "__init__.py" else ""
        file.write_text(text)
    return folder


def forget() -> None:
    """As if none of the package had been imported."""
    for module in [m for m in sys.modules if m.startswith("wobblekit")]:
        del sys.modules[module]
