"""Jobs in the queue of a Slurm cluster, as one array, by submitit.

Knows sbatch's options, squeue, and that a job that was asked to stop (``--signal=TERM@120``: two minutes before its
time is over, or when it must make room) has saved and is put back into the queue. What became of a job lies in the
sweep's folder, which all nodes share: the sweep may be left, and taken up again while jobs wait. Does not know what a
job does.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perdure.errors import MissingExtra, RecipeError, SystemRefused
from perdure.files.text_files import read_json
from perdure.files.written_whole import write_json
from perdure.run_folder.lock import SILENT_FOR
from perdure.sweeping import jobs as files
from perdure.sweeping.executors import Place
from perdure.sweeping.jobs import Job, Outcome

STOPPED = 130
"""Exit code of a job that saved and stopped: as `perdure run`'s."""
WARNING = 120
"""Seconds before its end that a job is told."""
HOUR = "60"
"""Minutes that a job asks for where no option says more: it goes on in the next ones."""
ROOM = 8
"""Trials of a search at once where nobody says how many."""
LOOK_EVERY = 5.0
"""Seconds between questions to the queue."""
ENDED = ("finished", "failed", "pruned", "busy")


class Slurm:
    """Jobs by sbatch; with ``cluster="local"`` submitit's processes on this machine stand in for the queue."""

    def __init__(self, folder: Path, place: Place, *, cluster: str = "slurm") -> None:
        try:
            import submitit
        except ImportError:
            raise MissingExtra("--on slurm needs submitit", todo='Type: pip install "perdure[slurm]"') from None
        if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
            raise RecipeError("there is no sbatch here", where="--on slurm", expected="a machine that submits to Slurm")
        self.folder, self.room, self.cluster = folder, place.jobs or ROOM, cluster
        self.logs = folder / "slurm"
        self.ids: dict[str, str] = {}
        """Key -> its number in the queue, of the jobs that are followed."""
        self.local: dict[str, Any] = {}
        self.asked, self.there, self.detached = 0.0, set(), False
        if cluster == "local":
            self.executor: Any = submitit.LocalExecutor(self.logs)
            self.executor.update_parameters(timeout_min=7 * 24 * 60)
            return
        own = {"signal": f"TERM@{WARNING}", "requeue": True, "time": HOUR, "job-name": f"perdure-{folder.name}"}
        self.executor = submitit.SlurmExecutor(self.logs)
        self.executor.update_parameters(
            array_parallelism=place.jobs or 256, additional_parameters=own | _flags(place.options)
        )

    def submit(self, jobs: Sequence[Job]) -> None:
        earlier = self._earlier()
        queued = self._in_queue(set(earlier.values())) if earlier else set()
        again = [job for job in jobs if earlier.get(job.key) in queued]
        fresh = [job for job in jobs if job not in again]
        self.ids |= {job.key: earlier[job.key] for job in again}
        for job in fresh:
            files.outcome_file(self.folder, job.key).unlink(missing_ok=True)
        if fresh:
            self._send(fresh)
        self.asked = 0.0

    def poll(self, seconds: float) -> list[tuple[str, Outcome]]:
        until = time.monotonic() + seconds
        while True:
            found = [(key, outcome) for key in list(self.ids) if (outcome := self._outcome(key)) is not None]
            for key, _ in found:
                del self.ids[key]
            if found or time.monotonic() >= until:
                return found
            time.sleep(min(0.2, seconds))

    @property
    def busy(self) -> bool:
        return bool(self.ids) and not self.detached

    def stop(self) -> str:
        """They stay in the queue, for they are not this process's own."""
        self.detached = True
        if not self.ids:
            return ""
        if self.cluster == "local":
            for key in self.ids:
                self.local[key].cancel()
            return ""
        numbers = " ".join(sorted({number.partition("_")[0] for number in self.ids.values()}))
        return f"The jobs go on: perdure sweep status {self.folder}. To end them: scancel {numbers}"

    def __enter__(self) -> Slurm:
        return self

    def __exit__(self, *_: object) -> None: ...

    def _send(self, fresh: Sequence[Job]) -> None:
        try:
            sent = self.executor.map_array(run, [job.to_json() for job in fresh])
        except (subprocess.CalledProcessError, RuntimeError) as refused:  # submitit wraps what sbatch says
            said = str(refused).strip().split("\n")[-1]
            raise SystemRefused(f"sbatch refused the jobs: {said}", where="--on slurm", todo="See --slurm.") from None
        self.ids |= {job.key: one.job_id for job, one in zip(fresh, sent)}
        self.local |= {job.key: one for job, one in zip(fresh, sent)} if self.cluster == "local" else {}
        if self.cluster == "slurm":
            write_json(self.logs / "jobs.json", self._earlier() | self.ids)

    def _outcome(self, key: str) -> Outcome | None:
        """How a job has ended; None as long as it waits or runs, or stands in the queue again."""
        told = files.read(self.folder, key)
        if told is not None and told.state in ENDED:
            return told
        if self._queued(key):
            return None
        told = files.read(self.folder, key)  # it may have ended between the two looks
        return told or Outcome(state="lost", said=f"the queue has it no more: {self._last_words(key)}")

    def _queued(self, key: str) -> bool:
        if self.cluster == "local":
            return not self.local[key].done()
        if time.monotonic() - self.asked > LOOK_EVERY:
            self.there, self.asked = self._in_queue(set(self.ids.values())), time.monotonic()
        return self.ids[key] in self.there

    def _in_queue(self, numbers: set[str]) -> set[str]:
        """Those of the jobs that wait or run."""
        whole = sorted({number.partition("_")[0] for number in numbers})
        said = _squeue("--array", "--jobs", ",".join(whole), "--format", "%i|%T")
        if said is None:  # the queue does not answer just now
            return set(numbers)
        rows = [line.split("|") for line in said.split("\n") if "|" in line]
        gone = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
        return {row[0].strip() for row in rows if row[1].strip() not in gone}

    def _earlier(self) -> dict[str, str]:
        file = self.logs / "jobs.json"
        found = read_json(file, todo="Delete it.") if file.exists() else {}
        return {str(key): str(number) for key, number in found.items()} if isinstance(found, Mapping) else {}

    def _last_words(self, key: str) -> str:
        for log in sorted(self.logs.glob(f"{self.ids[key]}_*_log.err")):
            lines = [line for line in log.read_text(errors="replace").split("\n") if line.strip()]
            if lines:
                return f"{lines[-1].strip()} (see {log})"
        return f"see {self.logs}"


def run(job: dict[str, Any]) -> dict[str, Any]:
    """A job on a node. One that was told to stop has saved: it stands in the queue again, and its process ends as
    `perdure run` does."""
    from perdure.sweeping.performing import perform

    signal.signal(signal.SIGTERM, _leave_at_once)  # until the run takes the signal itself: there is nothing to save
    outcome = perform(Job(**job), patience=1.5 * SILENT_FOR)  # a node that died before may hold its lock a while
    if outcome.state == "stopped":
        _leave_at_once()
    return asdict(outcome)


def _leave_at_once(*_: Any) -> None:
    _requeue()
    sys.exit(STOPPED)


def _requeue() -> None:
    """Back into the queue, unless somebody cancelled the job."""
    number = os.environ.get("SLURM_JOB_ID")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):  # whose last job has the number of the whole
        number = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    if number is None or (_squeue("--jobs", number, "--format", "%T") or "").strip() != "RUNNING":
        return
    subprocess.run(["scontrol", "requeue", number], check=False, timeout=60)


def _squeue(*options: str) -> str | None:
    """What squeue says; None where it does not answer. A job that it does not know any more is no line."""
    try:
        told = subprocess.run(
            ["squeue", "--noheader", *options], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout if told.returncode == 0 or "Invalid job id" in told.stderr else None


def _flags(options: Mapping[str, str]) -> dict[str, Any]:
    """``--requeue`` and the like have no value."""
    return {key.replace("_", "-"): True if value in ("", "true") else value for key, value in options.items()}
