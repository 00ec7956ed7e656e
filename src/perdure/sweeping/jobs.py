"""What travels between a sweep and whoever runs its cells: a job as JSON, and what has become of it.

Knows their fields and the files that outcomes are kept in. Does not know how either is made; imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from perdure import recipe as recipes
from perdure.files.written_whole import write_json
from perdure.run_folder import run_files
from perdure.settings.config import plain
from perdure.sweeping.cells import Cell

OUTCOMES = "outcomes"
"""Folder in a sweep's."""
State = Literal["finished", "failed", "stopped", "pruned", "busy", "lost"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A cell as another process, perhaps on another machine, can run it. JSON-ready."""

    key: str
    recipe: dict[str, Any]
    """Of one seed, defaults included."""
    origins: dict[str, str]
    sweep: str
    """The sweep's folder, whole."""
    here: str
    """The folder from which relative paths count."""
    study: dict[str, Any] = field(default_factory=dict)
    """What the card says of the sweep."""
    tasks: int | None = None
    trial: dict[str, Any] | None = None
    """Of a search: ``{"journal", "name", "id", "metric"}``; it may be ended between tasks."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What has become of a job."""

    state: State
    """`lost`: its process was killed, or its machine is gone; what it saved is kept."""
    said: str = ""
    """The message, where it is not finished."""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of its process."""
    fresh: bool = True
    """False if it had been finished before."""
    where: str = ""
    """Host and process."""


class OutcomeFile(run_files.Part):
    """A file of `OUTCOMES`."""

    key: str
    state: State
    said: str = ""
    seconds: float = Field(default=0.0, ge=0)


def job(cell: Cell, sweep: Path, *, study: Mapping[str, Any], trial: Mapping[str, Any] | None = None) -> Job:
    """What is needed to run a cell."""
    return Job(
        key=cell.key,
        recipe=recipes.to_mapping(cell.recipe),
        origins=dict(cell.recipe.origins),
        sweep=str(sweep.absolute()),
        here=str(Path.cwd()),
        study=plain(dict(study)),
        tasks=cell.tasks,
        trial=None if trial is None else dict(trial),
    )


def outcome_file(sweep: Path, key: str) -> Path:
    """Where what became of a job is kept."""
    return sweep / OUTCOMES / f"{key.replace('/', '-')}.json"


def keep(sweep: Path, key: str, outcome: Outcome) -> None:
    """Write what has become of a job."""
    write_json(outcome_file(sweep, key), {"key": key, **asdict(outcome)})


def read(sweep: Path, key: str) -> Outcome | None:
    """What has become of a job; None if nobody has said it.

    Raises:
        DataError: the file holds something else.
    """
    file = outcome_file(sweep, key)
    if not run_files.is_there(file):
        return None
    from perdure.files.text_files import read_json

    found = run_files.check(OutcomeFile, read_json(file), where=file, todo="Delete it.")
    return Outcome(
        **{name: found[name] for name in ("state", "said", "seconds", "cpu_seconds", "fresh", "where") if name in found}
    )
