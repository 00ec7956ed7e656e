"""`sweep.json`: which runs belong to a sweep, those of earlier calls with other values included; and how they stand.

Knows the file, and the state of a run by the files of its folder. Does not know how runs are made; imports no torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.errors import BusyError, DataError, RecipeError
from perdure.files.text_files import read_json
from perdure.files.written_whole import write_json
from perdure.run_folder import lock, run_files
from perdure.settings.config import plain
from perdure.sweeping import jobs
from perdure.sweeping.cells import Cell

NAME = "sweep.json"


class CellEntry(run_files.Part):
    """A run of a sweep."""

    arm: str
    name: str
    seed: int
    folder: str
    """Below the sweep's."""
    settings: dict[str, Any] = {}
    phase: str = "grid"
    """`grid`; of a sweep that chooses, `search` and `chosen`."""
    tasks: int | None = None


class SweepFile(run_files.Part):
    """`sweep.json`."""

    name: str
    study: dict[str, Any]
    cells: list[CellEntry]
    choices: list[dict[str, Any]] = []


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How one run of a sweep stands."""

    entry: Mapping[str, Any]
    state: str
    """`finished`, `running`, `waiting`, `stopped`, `pruned`, `failed`, `lost`."""
    done: int = 0
    """Tasks that are finished."""
    total: int = 0
    """Of the stream; 0: not known yet."""
    said: str = ""
    """Who works on it, or what went wrong."""


def read(folder: Path) -> dict[str, Any]:
    """A sweep's record.

    Raises:
        DataError: there is none in the folder, or it holds something else.
    """
    file = folder / NAME
    if not run_files.is_there(file):
        raise DataError("this is not a sweep's folder", where=str(folder), expected=f"{NAME} in it")
    return run_files.check(SweepFile, read_json(file), where=file, todo="Delete it; the same sweep writes it anew.")


def note(folder: Path, name: str, study: Any, cells: Sequence[Cell]) -> None:
    """Add runs to the record. Those of earlier calls stay: they were tried, too."""
    fresh: dict[str, Any] = {}
    for cell in cells:
        fresh[cell.key] = {
            "arm": cell.arm,
            "name": cell.name,
            "seed": cell.seed,
            "folder": cell.key,
            "settings": plain(dict(cell.settings)),
            "phase": cell.phase,
            "tasks": cell.tasks,
        }
    with _alone(folder):
        known = read(folder) if (folder / NAME).exists() else {"cells": [], "choices": []}
        entries = {entry["folder"]: entry for entry in known["cells"]} | fresh
        kept = {"name": name, "study": plain(study), "cells": list(entries.values()), "choices": known["choices"]}
        write_json(folder / NAME, kept)


def note_choices(folder: Path, choices: Sequence[Any]) -> None:
    """What was chosen, in place of what was chosen before for the same recipes and methods."""
    fresh = [plain(choice) for choice in choices]
    with _alone(folder):
        known = read(folder)
        kept = [c for c in known["choices"] if c.get("arm") not in {one["arm"] for one in fresh}]
        write_json(folder / NAME, {**known, "choices": [*kept, *fresh]})


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other sweep changes the record meanwhile.

    Raises:
        BusyError: one has been at it for a minute.
    """
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock.held(folder))
                break
            except BusyError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        yield


def settings_tried(folder: Path, arm: str, *, phase: str) -> int:
    """How many settings of a recipe and method a sweep has tried, in all its calls."""
    known = read(folder) if (folder / NAME).exists() else {"cells": []}
    return len({entry["name"] for entry in known["cells"] if entry["arm"] == arm and entry["phase"] == phase})


def restate(folder: Path, study: Mapping[str, Any]) -> None:
    """Let a finished run's card say what is known of its sweep by now: among how many settings it is."""
    card = run_files.read_card(folder)
    fresh = plain(dict(study))
    if card and card.get("study") != fresh:
        with lock.held(folder):
            write_json(folder / "card.json", {**card, "study": fresh})


def reached(folder: Path, tasks: int | None) -> bool:
    """Whether a run has come as far as it is to go.

    Args:
        tasks: after so many it is done; None: with its card.
    """
    scores = run_files.read_scores(folder)
    if not scores or (tasks is None and not run_files.read_card(folder)):
        return False
    last = max((row["after"] for row in scores["rows"]), default=-1)
    return tasks is None or last + 1 >= min(tasks, len(scores["tasks"]))


def standing(sweep: Path, entry: Mapping[str, Any]) -> Standing:
    """How a run of the record stands, by its folder."""
    folder = sweep / entry["folder"]
    scores = run_files.read_scores(folder)
    total = len(scores.get("tasks", []))
    done = 1 + max((row["after"] for row in scores.get("rows", [])), default=-1)
    if reached(folder, entry.get("tasks")):
        return Standing(entry=entry, state="finished", done=done, total=total)
    if (at_work := lock.holder(folder)) is not None:
        return Standing(entry=entry, state="running", done=done, total=total, said=str(at_work))
    outcome = jobs.read(sweep, entry["folder"])
    state = "waiting" if outcome is None or outcome.state in ("finished", "busy") else outcome.state
    state = "stopped" if state == "waiting" and total else state
    return Standing(entry=entry, state=state, done=done, total=total, said="" if outcome is None else outcome.said)


def find(folder: Path | None) -> Path:
    """The sweep that is meant: the folder, or the only one below `runs`.

    Raises:
        RecipeError: there is none, or there are several; they are named.
    """
    if folder is not None:
        read(folder)
        return folder
    found = sorted(file.parent for file in Path("runs").glob(f"*/{NAME}"))
    if len(found) != 1:
        named = "Name one: " + ", ".join(map(str, found)) + "." if found else "Name its folder."
        what = f"{len(found)} sweeps lie here" if found else "there is no sweep here"
        raise RecipeError(what, where="runs", expected="one", todo=named)
    return found[0]


def progress(folder: Path) -> str:
    """How far a run has come, in words: ``2 of 5 tasks``."""
    scores = run_files.read_scores(folder)
    total = len(scores.get("tasks", []))
    done = 1 + max((row["after"] for row in scores.get("rows", [])), default=-1)
    return f"{done} of {total} tasks" if total else "its first task"
