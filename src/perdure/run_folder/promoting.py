"""Which version is promoted, which are kept: the pointer moved, old versions pruned, states checked.

Knows folders of versions and what a gate has decided. Does not know how versions are made; imports no torch. Each of
these functions holds the lock of ``versions`` while it writes.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path

from perdure.errors import RecipeError
from perdure.files.text_files import read_json
from perdure.files.written_whole import write_json
from perdure.run_folder import lock, run_files, versions
from perdure.run_folder.versions import Version

LATELY = 3600.0
"""Seconds for which a version that was promoted is not pruned: someone may still be loading it."""


def promote(run: Path, number: int, *, reason: str = "", by: str = "perdure promote") -> Version:
    """Make a version the promoted one; nothing is deleted.

    Raises:
        RecipeError: there is no such version, its state was pruned, or it is promoted already.
        BusyError: an update is moving the pointer.
    """
    version = versions.resolve(f"{run}{versions.AT}{number}")
    if version.current:
        raise RecipeError(f"version {number} is promoted already", where=str(run))
    _require_state(version)
    with lock.held(run / versions.FOLDER / POINTER):
        versions.point(run, number, by=by, reason=reason)
    return versions.resolve(run)


POINTER = ".pointer"
"""Folder whose lock is held while the pointer moves. An update holds that of `versions` for as long as it works, and a
rollback must not wait for it."""


def rollback(run: Path, number: int | None = None, *, reason: str = "") -> Version:
    """Promote the version that was promoted before, or `number`. Raises as `promote`."""
    if number is None:
        history = versions.pointer(run)["history"]
        if not history:
            raise RecipeError(
                "no version was promoted before this one", where=str(run), expected="an earlier promotion"
            )
        number = int(history[-1]["was"])  # type: ignore[arg-type]
    return promote(run, number, reason=reason, by="perdure rollback")


def settle(run: Path) -> str:
    """Finish what an update decided and was killed before doing; what was done, in words, empty if nothing."""
    newest = versions.listed(run)[-1]
    decided = newest.about.get("gate", {}).get("decision") == "promote"  # false of what a run left
    pointer = versions.pointer(run)
    moved = any(entry["version"] == newest.number for entry in pointer["history"])
    if not decided or moved or pointer["current"] != newest.about["parent"]:
        return ""
    with lock.held(run / versions.FOLDER / POINTER):
        versions.point(run, newest.number, by="perdure update", reason="decided before the update was stopped")
    return f"version {newest.number} had passed its gate when the update was stopped: it is promoted now"


def prune(run: Path, keep: int) -> list[int]:
    """Remove states and predictions of old versions; what they were, and who came from whom, stays.

    Args:
        keep: how many of the newest stay whole, the run itself among them. Besides stay the run itself, the promoted
            version and one that was within the hour, and the parent of an update that is under way.

    Returns:
        Numbers of the versions that were pruned.
    """
    with lock.held(run / versions.FOLDER):
        return prune_held(run, keep)


def prune_held(run: Path, keep: int) -> list[int]:
    """`prune`, by who holds the lock of ``versions`` already."""
    found = [version for version in versions.listed(run) if version.state.is_file()]
    stays = {version.number for version in found[-keep:]} if keep else set()
    stays |= {versions.own_number(run), versions.current(run), *_lately(run), *_parent_in_use(run)}
    gone = [version for version in found if version.number not in stays]
    for version in gone:
        write_json(version.folder / "version.json", version.about | {"pruned": True})
        for part in ("checkpoint", "predictions", "before"):
            shutil.rmtree(version.folder / part, ignore_errors=True)
    return [version.number for version in gone]


def faults(version: Version) -> list[str]:
    """What is wrong with a version's state; the run's own state is checked when it is loaded."""
    said = version.about.get("state", {}).get("digest")
    if version.about.get("pruned"):
        return []
    if not version.state.is_file():
        return [f"{version.state}: there is no such file"]
    if said and file_digest(version.state) != said:
        return [f"{version.state}: damaged (its digest is another than when it was made)"]
    return []


def file_digest(file: Path) -> str:
    """blake2b of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _lately(run: Path) -> set[int]:
    """Versions that were promoted until less than an hour ago."""
    file = versions.pointer_file(run)
    history = versions.pointer(run)["history"]
    recent = run_files.is_there(file) and time.time() - file.stat().st_mtime < LATELY
    return {history[-1]["was"]} if recent and history else set()


def _parent_in_use(run: Path) -> set[int]:
    """What an update that was stopped goes on from."""
    file = run / versions.FOLDER / versions.UNDER_WAY / "update.json"
    return {int(read_json(file)["parent"])} if run_files.is_there(file) else set()


def _require_state(version: Version) -> None:
    if not version.state.is_file():
        raise RecipeError(
            f"the state of version {version.number} was pruned",
            where=str(version.run),
            expected="a version that has its state",
            todo=f"See: perdure versions {version.run}",
        )
