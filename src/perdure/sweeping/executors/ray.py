"""Jobs as tasks of Ray: on this machine's cores and GPUs, or on a cluster that shares the runs' folder.

Knows Ray's tasks, resources and failures: a worker or node that dies has its task run again elsewhere, where the run
goes on from what it saved. Sends nothing to Ray's makers and leaves `print` as it is (`OFF`). Does not know what a job
does.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perdure.errors import MissingExtra, RecipeError
from perdure.run_folder.lock import SILENT_FOR
from perdure.sweeping.executors import RETRIES, Place
from perdure.sweeping.jobs import Job, Outcome

OFF = ("RAY_USAGE_STATS_ENABLED", "RAY_TQDM_PATCH_PRINT")
"""Variables by which Ray would report its use to its makers, and put a `print` of its own in Python's place."""


class Ray:
    """A task for each job, with its share of a GPU and a core for itself and each of its loader processes."""

    def __init__(self, folder: Path, place: Place) -> None:
        os.environ.update(dict.fromkeys(OFF, "0"))
        try:
            import ray
        except ImportError:
            raise MissingExtra("--on ray needs Ray", todo='Type: pip install "perdure[ray]"') from None
        self.ray, self.folder = ray, folder
        self.own = not ray.is_initialized()
        if self.own:
            _connect(ray, place.address)
        here = ray.cluster_resources()
        self.share = place.gpu_share if place.gpu_share is not None else float(here.get("GPU", 0) > 0)
        if self.share and not here.get("GPU"):
            raise RecipeError("there is no GPU in the cluster", where="--gpu-share", expected="0")
        self.room = place.jobs or max(int(here.get("GPU", 0) / self.share if self.share else here.get("CPU", 1)), 1)
        self.limited, self.stopping = place.jobs > 0, False
        self.waiting: deque[Job] = deque()
        self.tasks: dict[Any, Job] = {}
        """What runs, or waits for its resources."""

    def submit(self, jobs: Sequence[Job]) -> None:
        self.waiting.extend(jobs)
        self._feed()

    def poll(self, seconds: float) -> list[tuple[str, Outcome]]:
        if not self.tasks:
            return []
        ready, _ = self.ray.wait(list(self.tasks), num_returns=1, timeout=seconds)
        found = [(self.tasks.pop(one).key, self._outcome(one)) for one in ready]
        self._feed()
        return found

    @property
    def busy(self) -> bool:
        return bool(self.tasks)

    def stop(self) -> str:
        """Asks as Ctrl-C does, the second time without mercy."""
        for task in self.tasks:
            self.ray.cancel(task, force=self.stopping)
        self.stopping = True
        self.waiting.clear()
        return ""

    def __enter__(self) -> Ray:
        return self

    def __exit__(self, *_: object) -> None:
        if self.tasks and not self.stopping:
            self.stop()
            self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=60)
        if self.own:
            self.ray.shutdown()

    def _feed(self) -> None:
        while self.waiting and (not self.limited or len(self.tasks) < self.room):
            job = self.waiting.popleft()
            workers = job.recipe.get("run", {}).get("workers", 0)
            task = self.ray.remote(run).options(
                num_cpus=1 + workers, num_gpus=self.share, max_retries=RETRIES, retry_exceptions=False, name=job.key
            )
            self.tasks[task.remote(job.to_json())] = job

    def _outcome(self, task: Any) -> Outcome:
        errors = self.ray.exceptions
        try:
            return Outcome(**self.ray.get(task))
        except errors.TaskCancelledError:
            return Outcome(state="stopped")
        except errors.RayTaskError as fault:
            return Outcome(state="failed", said=str(fault).strip().split("\n")[-1])
        except errors.RayError as fault:
            said = (str(fault).strip().split("\n") or [""])[0]
            return Outcome(state="lost", said=f"{type(fault).__name__}, {RETRIES + 1} times: {said}")


def run(job: dict[str, Any]) -> dict[str, Any]:
    """A job on a node."""
    from perdure.sweeping.performing import perform

    # A node that died before may hold its lock a while.
    return asdict(perform(Job(**job), patience=1.5 * SILENT_FOR))


def _connect(ray: Any, address: str) -> None:
    """To a cluster, or to one of this machine's own, which is made."""
    try:
        ray.init(
            address=address or None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if address or os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}),
        )
    except (ConnectionError, ValueError, RuntimeError) as refused:
        said = str(refused).strip().split("\n")[0]
        raise RecipeError(
            said, where="--on ray", expected="a Ray cluster (RAY_ADDRESS)", todo="Type: ray status"
        ) from None
