"""Versions of a run in use: which there are, where each lies, and which one is promoted.

Knows ``RUN/versions``: one folder a version, laid out as a run's own, and the pointer ``current.json``. Does not know
how a version is learned or judged; imports no torch.

Each task that a run learns leaves a version, numbered from 1; the run itself is that of its last task (`tasks.json`
says its number; 1 where nothing does). Each update adds one. Their folders ``versions/000002`` ... hold what any run's
folder holds (``recipe.yaml``, ``scores.json``, ``card.json``, ``checkpoint/latest.safetensors``; of an update
``predictions/``) and ``version.json``. Once there, a version's folder does not change; a pruned one keeps all but its
state and predictions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from perdure.errors import RecipeError
from perdure.files.text_files import read_json
from perdure.files.written_whole import write_json
from perdure.run_folder import run_files
from perdure.run_folder.run_files import PointerFile, TasksFile, VersionFile, checkpoint_file

FOLDER = "versions"
UNDER_WAY = ".work"
"""Beside the versions: the update that is not finished."""
AT = "@"
"""Stands between a run and its version: ``RUN@3``, ``RUN@current``, ``RUN@candidate``."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A state of a run that can be used."""

    run: Path
    number: int
    current: bool
    """Whether it is the promoted one."""

    @property
    def folder(self) -> Path:
        """Its folder, laid out as that of any run: what reads a run reads this."""
        return version_folder(self.run, self.number)

    @property
    def state(self) -> Path:
        """The learned state; not there if the version was pruned."""
        return checkpoint_file(self.folder)

    @property
    def is_run(self) -> bool:
        """Whether it is the run itself, as its last task left it."""
        return self.folder == self.run

    @cached_property
    def about(self) -> dict[str, Any]:
        """``version.json``; empty for the run itself."""
        file = self.folder / "version.json"
        return read_checked(VersionFile, file) if run_files.is_there(file) else {}

    @property
    def parent(self) -> int | None:
        """Number of the version that it was learned from; None for that of a run's first task."""
        return (self.number - 1 or None) if self.is_run else self.about.get("parent")

    @cached_property
    def scores(self) -> dict[str, Any]:
        """``scores.json``."""
        return run_files.read_scores(self.folder)

    @cached_property
    def card(self) -> dict[str, Any]:
        """``card.json``."""
        return run_files.read_card(self.folder)

    @cached_property
    def tasks(self) -> list[dict[str, Any]]:
        """What each task was: ``index``, ``name``, ``kind``, ``candidates``, ``offset``, ``metrics``; empty for a run
        that was made before runs wrote it down."""
        return read_tasks(self.folder).get("tasks", [])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes learned so far, by label; empty where the tasks have none, or did not write them."""
        named = {task["offset"] + i: name for task in self.tasks for i, name in enumerate(task["candidates"])}
        return tuple(named[label] for label in sorted(named))

    def __str__(self) -> str:
        return f"{self.run}{AT}{self.number}"


def resolve(address: str | Path) -> Version:
    """The version that ``RUN``, ``RUN@3``, ``RUN@current`` or ``RUN@candidate`` stands for.

    Args:
        address: a run alone stands for its promoted version. `candidate` is the newest that is not promoted. The folder
            of a version itself stands for that version.

    Raises:
        RecipeError: there is no such version, or its state was pruned; those that are there are listed.
    """
    run, wanted = split(address)
    known, now = numbers(run), current(run)
    if wanted in ("", "current"):
        number = now
    elif wanted == "candidate":
        newer = [n for n in known if n > now]
        if not newer:
            raise RecipeError(
                f"the newest version, {known[-1]}, is promoted", where=str(address), expected="a candidate"
            )
        number = newer[-1]
    else:
        number = int(wanted) if wanted.isdecimal() and len(wanted) < 9 else -1
    if number not in known:
        raise RecipeError(
            f"there is no version {wanted or number}",
            where=str(run),
            expected=f"one of {', '.join(map(str, known))}, current or candidate",
            todo=f"See: perdure versions {run}",
        )
    return Version(run=run, number=number, current=number == now)


def split(address: str | Path) -> tuple[Path, str]:
    """The run's folder, and what stands behind the ``@``; a path that is there is a path, whatever its name."""
    text = str(address)
    path, at, wanted = text.rpartition(AT)
    if not at or not path or Path(text).exists():
        path, wanted = text, ""
    run = run_files.one_run(Path(path))
    if run.parent.name == FOLDER and (run / "version.json").is_file() and run.name.isdecimal():
        return run.parent.parent, wanted or str(int(run.name))
    return run, wanted


def listed(run: Path) -> list[Version]:
    """All versions of a run, the first one first."""
    now = current(run)
    return [Version(run=run, number=number, current=number == now) for number in numbers(run)]


def numbers(run: Path) -> list[int]:
    """Those of the folders in ``versions``, and the run's own."""
    folder = run / FOLDER
    found = [int(p.name) for p in folder.iterdir() if p.name.isdecimal()] if folder.is_dir() else []
    return sorted({own_number(run), *found})


def own_number(run: Path) -> int:
    """Number of the version that the run itself is."""
    return read_tasks(run).get("version", 1)


def version_folder(run: Path, number: int) -> Path:
    """Where a version lies."""
    return run if number == own_number(run) else run / FOLDER / f"{number:06d}"


def updates(run: Path) -> list[int]:
    """Numbers of the versions that updates made."""
    own = own_number(run)
    return [number for number in numbers(run) if number > own]


# -- the pointer --------------------------------------------------------------------------------------------


def pointer_file(run: Path) -> Path:
    """What says which version is promoted; it appears with the first promotion, and is replaced whole. Whoever serves a
    run follows it."""
    return run / FOLDER / "current.json"


def pointer(run: Path) -> dict[str, Any]:
    """``{"current": number, "history": [{"version", "was", "time", "by", "reason"}]}``; the run itself without a
    file."""
    file = pointer_file(run)
    if run_files.is_there(file):
        return read_checked(PointerFile, file)
    return {"current": own_number(run), "history": []}


def current(run: Path) -> int:
    """Number of the promoted version."""
    return pointer(run)["current"]


def point(run: Path, number: int, *, by: str, reason: str = "") -> None:
    """Promote a version; nobody else may be writing now (`lock.held`).

    Args:
        by: the command.
    """
    before = pointer(run)
    entry = {"version": number, "was": before["current"], "time": now_in_words(), "by": by, "reason": reason}
    write_json(pointer_file(run), {"current": number, "history": [*before["history"], entry]})


def now_in_words() -> str:
    """Local time with its offset from UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S%z")


# -- tasks --------------------------------------------------------------------------------------------------


def read_tasks(folder: Path) -> dict[str, Any]:
    """``tasks.json`` of a run; empty if there is none. Raises as `run_files.check`."""
    file = folder / "tasks.json"
    return read_checked(TasksFile, file) if run_files.is_there(file) else {}


def read_checked(schema: type[run_files.Part], file: Path) -> dict[str, Any]:
    """A JSON file of `versions`. Raises DataError, which names the first part that is none of the schema."""
    value: Mapping[str, Any] = run_files.check(schema, read_json(file), where=file, todo="")
    return dict(value)


def ancestors(versions: Sequence[Version], number: int) -> list[int]:
    """The version's parent, its parent's, ... down to the run."""
    parents = {version.number: version.parent for version in versions}
    found: list[int] = []
    while isinstance(parent := parents.get(number), int) and parent < number:
        found.append(parent)
        number = parent
    return found
