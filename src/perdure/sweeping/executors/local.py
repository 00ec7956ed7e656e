"""Jobs in processes of this machine, each of which runs many: a job after the first begins at once.

Knows processes, signals, GPUs by `CUDA_VISIBLE_DEVICES`, and CPU threads. Does not know what a job does.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from perdure.sweeping.executors import RETRIES, Place
from perdure.sweeping.jobs import Job, Outcome

PATIENCE = 60.0
"""Seconds that a process has to save and stop."""
SAID = 12
"""Lines of a process's log that are looked through for what ended it."""


class _Worker:
    """A process, and the job that it has."""

    def __init__(self, number: int, log: Path, environment: dict[str, str], came: queue.SimpleQueue) -> None:
        self.number, self.log = number, log
        self.job: Job | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        self.began = log.stat().st_size if log.exists() else 0
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "perdure.sweeping.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for the sweep, which tells them
            )
        threading.Thread(target=self._listen, args=(came,), daemon=True).start()

    def give(self, job: Job) -> None:
        self.job = job
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it is gone, which its end says
            print(json.dumps(job.to_json()), file=self.process.stdin, flush=True)

    def last_words(self) -> str:
        """The last line of its log that says something."""
        with self.log.open("rb") as log:
            log.seek(self.began)
            lines = log.read().decode(errors="replace").strip().split("\n")[-SAID:]
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def _listen(self, came: queue.SimpleQueue) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            came.put((self, line))
        self.process.wait()
        came.put((self, None))


class Local:
    """Jobs in `place.jobs` processes."""

    def __init__(self, folder: Path, place: Place) -> None:
        self.room = place.jobs or len(place.gpus) or 1
        self.folder, self.gpus = folder, place.gpus
        self.waiting: deque[Job] = deque()
        self.workers: list[_Worker | None] = [None] * self.room
        self.came: queue.SimpleQueue[tuple[_Worker, str | None]] = queue.SimpleQueue()
        self.killed: Counter[str] = Counter()
        self.stopping = False

    def submit(self, jobs: Sequence[Job]) -> None:
        self.waiting.extend(jobs)
        self._feed()

    def poll(self, seconds: float) -> list[tuple[str, Outcome]]:
        found: list[tuple[str, Outcome]] = []
        until = time.monotonic() + seconds
        while not found:
            try:
                worker, line = self.came.get(timeout=max(until - time.monotonic(), 0.001))
            except queue.Empty:
                return found
            job, worker.job = worker.job, None
            if line is None:
                self.workers[worker.number] = None
                found += [] if job is None else self._ended(job, worker)
            elif job is not None:
                found.append((job.key, Outcome(**json.loads(line))))
            self._feed()
        return found

    @property
    def busy(self) -> bool:
        return any(worker is not None and worker.job is not None for worker in self.workers)

    def stop(self) -> str:
        """The second time at once."""
        ask = signal.SIGKILL if self.stopping else signal.SIGTERM
        self.stopping = True
        self.waiting.clear()
        for worker in filter(None, self.workers):
            if worker.job is None:
                _close(worker.process)
            else:
                with suppress(ProcessLookupError):
                    worker.process.send_signal(ask)
        return ""

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.stopping:
            self.stop()
        for worker in filter(None, self.workers):
            try:
                worker.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                worker.process.kill()

    def _feed(self) -> None:
        """Jobs to whoever has none; processes are started as they are needed, and one that has no job left ends."""
        for number in range(self.room):
            worker = self.workers[number]
            if worker is not None and worker.job is not None:
                continue
            if self.waiting and not self.stopping:
                if worker is None:
                    log = self.folder / "logs" / f"worker_{number}.txt"
                    worker = self.workers[number] = _Worker(number, log, self._environment(number), self.came)
                worker.give(self.waiting.popleft())

    def _ended(self, job: Job, worker: _Worker) -> list[tuple[str, Outcome]]:
        """A process that is gone had a job: killed ones are begun again, faults of ours are told."""
        code = worker.process.returncode
        if code >= 0:
            return [(job.key, Outcome(state="failed", said=f"{worker.last_words()} (see {worker.log})"))]
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        self.killed[job.key] += 1
        if self.stopping:
            return [(job.key, Outcome(state="stopped", said=f"ended by {name}"))]
        if self.killed[job.key] <= RETRIES:
            self.waiting.appendleft(job)
            return []
        todo = "is its memory too small?" if name == "SIGKILL" else f"see {worker.log}"
        return [(job.key, Outcome(state="lost", said=f"its process was ended by {name} {RETRIES + 1} times; {todo}"))]

    def _environment(self, number: int) -> dict[str, str]:
        found = dict(os.environ)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        found.setdefault("OMP_NUM_THREADS", str(max(cores // self.room, 1)))
        if self.gpus:
            found["CUDA_VISIBLE_DEVICES"] = self.gpus[number % len(self.gpus)]
        return found


def _close(process: subprocess.Popen[Any]) -> None:
    """A process without a job ends with its input."""
    if process.stdin is not None:
        with suppress(OSError):
            process.stdin.close()
