"""The files of a run's folder, checked when they are read: one schema each.

Knows what `scores.json`, `card.json`, `events.jsonl` and the resume points hold, and says where one of them holds
something else. Does not know what the numbers mean; imports no torch.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from perdure.errors import CheckpointError, DataError, PerdureError, RecipeError
from perdure.files.text_files import lines, read_json
from perdure.settings.faults import display, expectation

Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | float | None
PARTS = ("scores.json", "card.json", "recipe.yaml", "events.jsonl")
"""By these files a run's folder is known."""
DETERMINISM = "determinism.json"
AGAIN = "Delete it; the same recipe, run again, writes it anew."


class Part(BaseModel):
    """An object; what a schema does not name may stand beside it."""

    model_config = ConfigDict(extra="allow", strict=True)


class Row(Part):
    """One test of one task."""

    after: Annotated[int, Field(ge=-1, lt=2**31)]
    asked: Annotated[int, Field(ge=0, lt=2**31)]
    n: Count
    values: dict[str, Number | str | dict[str, Number | str]]


class Kept(Part):
    """One test of a set that the stream does not teach."""

    after: Annotated[int, Field(ge=-1, lt=2**31)]
    set: str
    n: Count
    accuracy: Number


class ScoresFile(Part):
    """`scores.json`."""

    tasks: list[str]
    headline: str
    rows: list[Row]
    retention: list[Kept] = []
    """Of runs that ask sets which their streams do not teach."""

    @model_validator(mode="after")
    def _tasks_exist(self) -> ScoresFile:
        for i, row in enumerate(self.rows):
            if max(row.after, row.asked) >= len(self.tasks):
                raise ValueError(
                    f"row {i} is after task {row.after} and asks task {row.asked} of {len(self.tasks)}, counted from 0"
                )
        return self


class Apart(Part):
    """How far two runs lay apart (`perdure.auditing.comparing`)."""

    score: Annotated[float, Field(ge=0)]
    numbers: Annotated[float, Field(ge=0)]
    answers: Count
    records: Count


class DeterminismFile(Part):
    """`determinism.json`, in the folder of a recipe's runs."""

    settings: str
    """Digest of the settings that move numbers, seed apart."""
    tasks: Annotated[int, Field(ge=1)] | None = None
    """The first so many were run; null: all."""
    measured: dict[str, Apart]


class CardFile(Part):
    """`card.json`."""

    method: str = ""
    recipe: dict[str, Any] = {}
    origins: dict[str, str] = {}
    weights: dict[str, dict[str, Any]] = {}
    data: dict[str, Any] = {}
    stream: dict[str, Any] = {}
    seeds: dict[str, int] = {}
    facts: dict[str, Any] = {}
    """What a question of its kind needs (`streams.appending.FACTS`)."""
    precision: str = ""
    device: str = ""
    extra_parameters: Number = None
    stored_bytes: Number = None
    wall_seconds: Number = None
    peak_memory: dict[str, Number] = {}
    versions: dict[str, str] = {}
    git: dict[str, Any] | None = None
    accuracy_matrix: dict[str, Any] = {}
    selection: dict[str, Any] = {}
    """How a sweep chose the settings: `on` (validation, first-task, test), `metric`, `size` (settings tried)."""
    tolerance: dict[str, Apart] = {}
    """How far the numbers move by threads, test batches, processes or device, as was measured."""


class CalibrationFile(Part):
    """`calibration.json`: see `perdure.calibration`."""

    temperature: Annotated[float, Field(gt=0, lt=1e6)]
    n: Count


class Event(Part):
    """A line of `events.jsonl`."""

    event: str
    time: float
    task: Annotated[int, Field(ge=-1, lt=2**31)] = -1


class Asked(Part):
    """The question that the last finished task was tested with."""

    model_config = ConfigDict(extra="forbid", strict=True)
    kind: str
    candidates: list[str]
    offset: Count = 0
    task: str | None = None


class ResumePoint(ScoresFile):
    """`checkpoint/latest.safetensors`: what is known after a finished task."""

    headline: str = ""
    tasks: list[str] = Field(alias="names")
    task: Count
    method: dict[str, Any]
    query: Asked
    skipped: dict[str, str]

    @model_validator(mode="after")
    def _task_exists(self) -> ResumePoint:
        if self.task >= len(self.tasks):
            raise ValueError(f"task {self.task} of {len(self.tasks)}, counted from 0")
        return self


class StagePoint(Part):
    """`checkpoint/task_NNNN/STAGE.safetensors`: what is known within a task."""

    step: Count
    finished: bool
    state: dict[str, Any]


class KnownTask(Part):
    """A task as far as tests and later tasks must know it, without its examples."""

    index: Count
    name: str
    kind: str
    candidates: list[str]
    offset: Count
    metrics: Annotated[list[str], Field(min_length=1)]
    facts: dict[str, Any] = {}
    """What a question of its kind needs (`streams.appending.FACTS`)."""


class TasksFile(Part):
    """`tasks.json`: the tasks of a run's stream, and how its tests ask."""

    version: Annotated[int, Field(ge=1)] = 1
    """Number of the version that the run itself is: each task before its last has left one. 1 of runs that left none,
    whose first update is version 2."""

    tasks: Annotated[list[KnownTask], Field(min_length=1)]
    shared_candidates: bool
    task_revealed: bool
    scope: Literal["seen", "all"]


class Promotion(Part):
    """A move of the pointer."""

    version: Annotated[int, Field(ge=1)]
    was: Annotated[int, Field(ge=1)]
    time: str
    by: str
    reason: str = ""


class PointerFile(Part):
    """`versions/current.json`."""

    current: Annotated[int, Field(ge=1)]
    history: list[Promotion]


class VersionFile(Part):
    """`versions/NNNNNN/version.json`."""

    version: Annotated[int, Field(ge=1)]
    parent: Annotated[int, Field(ge=1)] | None
    """None: the run's first task."""
    time: str
    task: KnownTask
    state: dict[str, int | str]
    """Its bytes and their digest (blake2b)."""
    changed: dict[str, Any] = {}
    """Settings that differ from the parent's: dotted name -> before and now."""
    gate: dict[str, Any] = {}
    """What the gate found: see docs/update.md."""
    pruned: bool = False
    of_run: bool = False
    """A task of the run left it, not an update."""


def check(
    schema: type[BaseModel], value: Any, *, where: str | Path, error: type[PerdureError] = DataError, todo: str = AGAIN
) -> Any:
    """The value as it was given.

    Raises:
        `error`, which names the first part that is none of the schema.
    """
    try:
        _adapter(schema).validate_python(value)
    except ValidationError as faults:
        first = faults.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        found = "nothing" if first["type"] == "missing" else display(first["input"])
        expected = expectation(first)
        if first["type"] == "value_error":
            raise error(expected, where=str(where), todo=todo) from None
        what = f"{place}: found {found}" if place else f"holds {found}"
        raise error(what, where=str(where), expected=expected, todo=todo) from None
    return value


def checkpoint_file(folder: Path) -> Path:
    """The resume point of a run: what it has learned."""
    return folder / "checkpoint" / "latest.safetensors"


def read_scores(folder: Path) -> dict[str, Any]:
    """`scores.json` of a run; empty if there is none. Raises as `check`."""
    return _read(ScoresFile, folder / "scores.json")


def read_card(folder: Path) -> dict[str, Any]:
    """`card.json` of a run; empty if there is none. Raises as `check`."""
    return _read(CardFile, folder / "card.json")


def read_calibration(folder: Path) -> dict[str, Any]:
    """`calibration.json` of a run; empty if there is none. Raises as `check`."""
    return _read(CalibrationFile, folder / "calibration.json")


def card_of(source: Path) -> tuple[dict[str, Any], Path]:
    """The card in a run's folder, or of a file, and the folder that it lies in.

    Raises:
        RecipeError: there is none, or the file is no card.
    """
    folder = one_run(source)
    file = folder / "card.json" if folder.is_dir() else folder
    if not is_there(file):
        raise RecipeError("there is no card", where=str(file), expected="a finished run, or its card.json")
    todo = "Give the card.json of a run."
    card = check(CardFile, read_json(file, error=RecipeError, todo=todo), where=file, error=RecipeError, todo=todo)
    return dict(card), file.parent


def read_determinism(folder: Path) -> dict[str, Any]:
    """`determinism.json` in the folder of a recipe's runs; empty if there is none. Raises as `check`."""
    return _read(DeterminismFile, folder / DETERMINISM)


def read_lines(file: Path, schema: type[BaseModel] = Event) -> tuple[list[dict[str, Any]], int]:
    """Events (or lines of another schema), and how many lines were none (a kill tears the last one)."""
    if not is_there(file):
        return [], 0
    found, torn = [], 0
    for line in lines(file.read_text(encoding="utf-8", errors="replace")):
        try:
            found.append(check(schema, json.loads(line), where=file))
        except (ValueError, RecursionError, DataError):
            torn += bool(line.strip())
    return found, torn


def runs_below(folder: Path, *, depth: int = 4) -> list[Path]:
    """Folders that hold any part of a run: this one, or all below it, sorted; a run holds no other run."""
    if is_run(folder):
        return [folder]
    if depth == 0 or not folder.is_dir():
        return []
    below = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    return [run for child in below for run in runs_below(child, depth=depth - 1)]


def is_run(folder: Path) -> bool:
    """Does the folder hold any part of a run?"""
    return any((folder / part).is_file() for part in PARTS)


def one_run(folder: Path) -> Path:
    """The run that a folder stands for: itself, or the only one that lies in it, as for a run of one seed.

    Raises:
        RecipeError: several runs lie in it; they are named.
    """
    if (folder / "recipe.yaml").is_file() or not folder.is_dir():
        return folder
    inside = sorted(child for child in folder.iterdir() if (child / "recipe.yaml").is_file())
    if len(inside) > 1:
        named = ", ".join(map(str, inside[:4])) + (f" and {len(inside) - 4} more" if len(inside) > 4 else "")
        raise RecipeError(f"{len(inside)} runs lie here", where=str(folder), expected="one", todo=f"Name one: {named}.")
    return inside[0] if inside else folder


def is_there(file: Path) -> bool:
    """Whether there is such a file.

    Raises:
        DataError: something else lies in its place: a folder, a pipe, a device.
    """
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise DataError(f"this is {what}", where=str(file), expected="a file of the run", todo="Move it away.")
    return True


@contextmanager
def fitting(file: Path, *, what: str) -> Iterator[None]:
    """Whatever a state makes fail that is of something else than `what` becomes a message.

    Raises:
        CheckpointError: it names the file.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as fault:
        lines = [line.strip() for line in str(fault).split("\n") if line.strip()]
        said = ": ".join([type(fault).__name__, *lines[-1:]])[:200]
        raise CheckpointError(
            f"the state is not that of {what} ({said})",
            where=str(file),
            expected="what the same recipe saved here",
            todo="Add --again to make the run anew.",
        ) from fault


def _read(schema: type[BaseModel], file: Path) -> dict[str, Any]:
    if not is_there(file):
        return {}
    value: Mapping[str, Any] = check(schema, read_json(file, todo=AGAIN), where=file)
    return dict(value)


@cache
def _adapter(schema: type[BaseModel]) -> TypeAdapter:
    return TypeAdapter(schema)
