"""A job is run: its recipe, as `perdure run` does, and what has become of it is written down.

Knows jobs and `api.execute`. Does not know executors, nor why a job is wanted.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from perdure import recipe as recipes
from perdure.errors import BusyError, Interrupted, PerdureError, system_explained, too_little_memory
from perdure.recipe.checked import require_folders
from perdure.sweeping import jobs
from perdure.sweeping.jobs import Job, Outcome
from perdure.sweeping.record import reached

LOOK_EVERY = 5.0
"""Seconds between looks at a folder that is held."""


def perform(job: Job, *, patience: float = 0.0) -> Outcome:
    """Run a job, or go on with it; its outcome is kept in the sweep's folder, too.

    Args:
        patience: seconds to wait for a folder that another process holds: a dead one on another host lets go of it
            when it has given no sign of life for a while.

    Raises:
        whatever is a fault of ours; all that a user can mend becomes an outcome.
    """
    began, processor = time.monotonic(), time.process_time()
    with _in(Path(job.here)), _as_of_its_own():
        while (outcome := _outcome(job)).state == "busy" and time.monotonic() - began < patience:
            time.sleep(LOOK_EVERY)
        whole = replace(
            outcome,
            seconds=round(time.monotonic() - began, 3),
            cpu_seconds=round(time.process_time() - processor, 3),
            where=f"{socket.gethostname()}, process {os.getpid()}",
        )
        jobs.keep(Path(job.sweep), job.key, whole)
    return whole


def _outcome(job: Job) -> Outcome:
    from perdure import api  # brings torch

    asked = replace(recipes.load(job.recipe), origins=job.origins)
    folder = asked.folder(asked.run.seed)
    if job.tasks is not None and reached(folder, job.tasks):
        return Outcome(state="finished", fresh=False)
    ended: dict[str, Any] = {}
    try:
        with system_explained():
            require_folders(asked, again=False)
            found = api.execute(asked, quiet=True, watch=_watch(job, folder, ended), study=job.study or None)
        return Outcome(state="finished", fresh=found[0].fresh)
    except Interrupted as stop:
        return Outcome(state=ended["state"]) if ended else Outcome(state="stopped", said=str(stop))
    except BusyError as busy:
        return Outcome(state="busy", said=str(busy))
    except PerdureError as error:
        return Outcome(state="failed", said=str(error))
    except (MemoryError, RuntimeError) as error:
        small = too_little_memory(error)
        if small is None:
            raise
        return Outcome(state="failed", said=str(small))


def _watch(job: Job, folder: Path, ended: dict[str, Any]) -> Callable[[int, Any], bool] | None:
    """Ends a run that has come as far as it is to go, or that falls behind the others of a search."""
    if job.tasks is None and job.trial is None:
        return None
    behind = _falls_behind(job.trial) if job.trial is not None else None

    def watch(task: int, _scores: Any) -> bool:
        if job.tasks is not None and task + 1 >= job.tasks:
            ended["state"] = "finished"
        elif behind is not None and behind(task, folder):
            ended["state"] = "pruned"
        return bool(ended)

    return watch


def _falls_behind(trial: dict[str, Any]) -> Callable[[int, Path], bool]:
    from perdure.sweeping import searching

    return searching.pruner(trial)


@contextmanager
def _in(folder: Path):
    """Relative paths count from there."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def _as_of_its_own():
    """What one job leaves in a process does not count as the next one's: peaks of memory begin anew."""
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux: the resident peak begins at what is held now
        Path("/proc/self/clear_refs").write_text("5")
    yield
