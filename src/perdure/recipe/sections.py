"""The sections of a recipe, as frozen dataclasses.

Knows what may be stated, its defaults and its documentation. Does not know YAML or files, nor what the
names of methods, models, streams stand for.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from perdure.files.folders import LONGEST_NAME
from perdure.settings.config import Named, Seed
from perdure.types import Evaluation, Merge


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where and how a run takes place."""

    name: str = "run"
    """Folder of the run in `out`; by default made from the recipe's name."""
    seed: Seed = 0
    """All randomness of a run derives from it."""
    seeds: Annotated[tuple[Seed, ...], Field(max_length=1000)] = ()
    """Several runs, one for each seed, instead of `seed`."""
    device: str = "auto"
    """`auto` takes a GPU where there is one; or `cpu`, `cuda`, `cuda:1`, `xpu`, `mps`, refused if it is not there."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Autocast of forward passes; weights stay as they were loaded. fp16 needs a GPU."""
    matmul: Literal["highest", "high"] = "highest"
    """Products of float32 numbers on a GPU: in full, so that a GPU gives a CPU's numbers up to rounding, or in TF32
    (`high`), several times as fast with three digits. bf16 and fp16 do not need it."""
    compile: bool = False
    """torch.compile of the layers that models repeat (towers, language models, residual blocks). It moves numbers by
    rounding alone, as another device does. A layer is compiled when it first meets a shape: for long runs on a GPU."""
    out: Path = Path("runs")
    """Folder of all runs."""
    features: Path | None = None
    """Folder in which frozen image features are kept, for all runs that see the same images by the same weights in the
    same views; null: each run makes its own. Test-time methods without gradients use it (4 bytes a number: 2 kB an
    image and view of ViT-B/16)."""
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Processes that read and decode examples; changes no result."""
    save_every: Annotated[float, Field(gt=0)] = 300.0
    """Seconds between checkpoints within a task."""
    keep: Literal["all"] | Annotated[int, Field(ge=1)] = "all"
    """Versions whose state is kept, the newest ones: each task leaves one (`perdure versions RUN`), as large as what
    the method has learned. The promoted one stays besides."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What to do with an example that cannot be decoded; `skip` names it in the result card."""
    trackers: tuple[Literal["tensorboard", "trackio", "wandb", "mlflow"], ...] = ()
    """Experiment trackers to report to; none unless named here."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of torch; null leaves it to torch."""

    def for_runtime(self) -> dict[str, Any]:
        """What any runtime of this run is made with, in little too."""
        names = ("seed", "device", "precision", "matmul", "compile", "unreadable", "workers", "threads", "save_every")
        return {name: getattr(self, name) for name in names}

    def faults(self) -> Iterator[tuple[str, str]]:
        if not re.fullmatch(r"[\w.+=][\w.+=-]*", self.name) or set(self.name) == {"."}:
            yield "name", "expected letters, digits and . _ + = - (it names a folder, and must not begin with -)"
        elif len(self.name.encode()) > LONGEST_NAME:
            yield "name", f"expected at most {LONGEST_NAME} bytes (it names a folder), found {len(self.name.encode())}"
        if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", self.device):
            yield "device", f"expected auto, cpu, cuda, cuda:1, xpu, xpu:1 or mps, found '{self.device}'"
        for seed in self.seeds:
            if self.seeds.count(seed) > 1:
                yield "seeds", f"seed {seed} is given twice"
                return


@dataclass(frozen=True, kw_only=True)
class Expect:
    """A published number, printed beside ours."""

    metric: str
    """`average`, `last`, `forgetting` ..., or a metric of the last test."""
    value: float
    """In the metric's unit (accuracies in percent)."""
    source: str
    """Where the number is printed."""
    note: str = ""
    """What differs between their setting and ours."""
    stated_with: dict[str, Any] = field(default_factory=dict)
    """Settings of the recipe that states the number, where a run has others: written when they are changed."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run, wholly described: what a YAML file and overrides amount to."""

    stream: Named
    method: Named
    models: dict[str, Named] = field(default_factory=dict)
    """By role."""
    evaluate: Evaluation = field(default_factory=Evaluation)
    merge: Merge = field(default_factory=Merge)
    run: Run = field(default_factory=Run)
    expect: tuple[Expect, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Dotted name -> `file:line` or `command line`, of what was stated."""
    heading: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """The comment at the head of its file, or of its base's."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """One run each."""
        return self.run.seeds or (self.run.seed,)

    def folder(self, seed: int) -> Path:
        """Where the run with this seed is kept."""
        return self.run.out / self.run.name / f"seed_{seed}"

    def for_seed(self, seed: int) -> Recipe:
        """The recipe of one run alone."""
        return dataclasses.replace(self, run=dataclasses.replace(self.run, seed=seed, seeds=()))
