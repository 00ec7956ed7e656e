"""Who runs the jobs of a sweep: processes of this machine, a queue, a cluster. This is their one small face.

Does not know what a job does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol

from perdure.sweeping.jobs import Job, Outcome

Kind = Literal["local", "slurm", "ray"]
RETRIES = 3
"""How often a job whose process was killed is begun again."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where jobs run."""

    kind: Kind = "local"
    jobs: int = 0
    """At once; 0: of `local` one for each of `gpus`, or one; of others as many as there is room for."""
    gpus: tuple[str, ...] = ()
    """Of `local`: GPUs, each the only one that a job sees."""
    gpu_share: float | None = None
    """Of `ray`: of a GPU for each job; None: a whole one where there is one."""
    address: str = ""
    """Of `ray`: the cluster's; empty: the one around, or this machine."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Of `slurm`: options of sbatch."""


class Executor(AbstractContextManager, Protocol):
    """Runs jobs. As a context manager: on leaving, what runs is stopped where it is this process's own."""

    room: int
    """Jobs at once, as far as is known before."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Jobs to run, in this order, in addition to those that wait."""
        ...

    def poll(self, seconds: float) -> list[tuple[str, Outcome]]:
        """Keys of jobs that have come to an end since the last call, waiting at most so long for the first."""
        ...

    def stop(self) -> str:
        """Begin no more; ask what runs to save and stop, where it is this process's own; the second time at once. What
        is to be said of jobs that run on without it."""
        ...

    @property
    def busy(self) -> bool:
        """Whether a job runs whose end is to be waited for, also after a stop."""
        ...
