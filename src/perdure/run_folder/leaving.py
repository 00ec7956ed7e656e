"""What a task leaves behind while a run goes on: a version that can be used, compared and gone back to.

Knows a version's folder and that a state once written is never written into: the version's is the same file under
another name, so that it takes no time and no space until the run's resume point is the next task's. Does not know what
a run learns; imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure.files.written_whole import sync, write_json, write_text
from perdure.run_folder import promoting, versions
from perdure.run_folder.run_files import checkpoint_file

LEAVING = ".leaving"
"""Beside the versions: one that is not whole yet."""
SPARE = 1.1
"""Times the state that must be free on the disk, for the next one."""


def leave(run: Path, number: int, task: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    """Make the run's resume point a version, whole or not at all; nothing if it is there.

    Args:
        task: the one that was learned last, as `tasks.json` has it.
        files: what lies beside the state: name -> text, or what JSON says.

    Returns:
        What to say: that there is no room for its state, which then is left out. Mostly empty.
    """
    place = versions.version_folder(run, number)
    if place.exists():
        return ""
    work = run / versions.FOLDER / LEAVING
    shutil.rmtree(work, ignore_errors=True)
    for name, content in files.items():
        (write_text if isinstance(content, str) else write_json)(work / name, content)
    state = checkpoint_file(run)
    size = state.stat().st_size
    room = shutil.disk_usage(run).free >= SPARE * size
    if room:
        same_file(state, checkpoint_file(work))
    about = {
        "version": number,
        "parent": number - 1 or None,
        "time": versions.now_in_words(),
        "task": dict(task),
        "state": {"bytes": size, "digest": promoting.file_digest(state) if room else ""},
        "of_run": True,
    }
    write_json(work / "version.json", about if room else {**about, "pruned": True})
    os.rename(work, place)
    sync(place.parent)
    return "" if room else f"no room on the disk for the state of version {number}: it is not kept"


def same_file(state: Path, place: Path) -> None:
    """The same file under another name where the file system can, else a copy: no state is ever written into."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        place.unlink()
    try:
        os.link(state, place)
    except OSError:
        shutil.copyfile(state, place)
