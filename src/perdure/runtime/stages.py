"""Steps of one stage: seeded one by one, saved now and then, and gone on with where a run was stopped.

Knows checkpoints, events and signals of a runtime. Does not know what a step does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from perdure import checkpoint
from perdure.errors import CheckpointError, Interrupted
from perdure.run_folder import run_files
from perdure.run_folder.events import Events
from perdure.runtime.collectives import Agreement
from perdure.runtime.devices import seed_torch
from perdure.runtime.progress import Progress


class Owner(Protocol):
    """What steps ask of the runtime."""

    main: bool
    zero: int
    save_every: float
    stop_requested: bool
    stage: str
    batch_size: int
    precision: str
    task: int
    device: torch.device
    _events: Events

    @property
    def out(self) -> Path | None: ...
    @property
    def rank(self) -> int: ...
    @property
    def processes(self) -> int: ...
    def key(self, *key: Any) -> int: ...
    def say(self, text: str) -> None: ...
    def within(self, label: str) -> str: ...
    def progress(self, label: str, *, total: int, start: int = 0) -> Progress: ...
    def stage_file(self, stage: str) -> Path | None: ...
    def flush(self) -> None: ...


class Steps:
    """Iterates over the steps of a stage that are still to do, seeded and saved.

    Before step i torch's global generators are seeded from (seed, task, stage, i). After it, `state` is saved if
    `save_every` seconds have passed, and at the end. A finished stage restores its state and yields nothing.

    Args:
        state: name -> object with `state_dict`/`load_state_dict`, or dict of tensors that are filled in place.
    """

    def __init__(self, runtime: Owner, stage: str, *, total: int, state: Mapping[str, Any], label: str) -> None:
        self.runtime, self.stage, self.total, self.state = runtime, stage, total, state
        self._rank = (runtime.rank,) if runtime.rank else ()  # dropout must differ between processes
        self.file = runtime.stage_file(stage)
        self.begin, self.finished = self._restore()
        self.shown: dict[str, Any] = {}
        """Values beside the progress bar."""
        self.together = 1
        """Steps after which the stage may first be ended early: an epoch, where something is decided at its end."""
        self.before_save = lambda: None
        """Called before a save; may raise to keep the last good checkpoint."""
        if self.begin and not self.finished:
            runtime.say(f"resuming in {runtime.within(label)}, step {self.begin} of {total}")
        self.progress = runtime.progress(label, total=total, start=self.begin)

    def __iter__(self) -> Iterator[int]:
        if self.finished:
            return
        runtime, saved = self.runtime, time.monotonic()
        runtime.stage, runtime.batch_size = self.stage, 0
        agreement = Agreement(
            runtime.processes,
            lambda: (
                runtime.stop_requested,
                time.monotonic() - saved > runtime.save_every,
                runtime.processes > 1 and runtime._events.are_due(),
            ),
        )
        with self.progress:
            for step in range(self.begin, self.total):
                seed_torch(runtime.key(self.stage, step, *self._rank))
                yield step
                self.progress.advance(**self.shown)
                if self.finished:
                    break
                stop, save, flush = agreement.answers()
                if stop or save:
                    self._save(step + 1)
                    saved = time.monotonic()
                elif flush:
                    runtime.flush()
                if stop:
                    raise Interrupted(f"stopped in {runtime.within(self.stage)}, step {step + 1} of {self.total}")
                agreement.ask()
            agreement.settle()
        self.finished = True
        self._save(self.total)

    def stop(self) -> None:
        """The stage ends with the present step."""
        self.finished = True

    def _save(self, step: int) -> None:
        self.before_save()
        if self.file is not None and (self.runtime.main or self.runtime.zero):
            state = {name: _state_of(item) for name, item in self.state.items()}
            if self.runtime.main:
                checkpoint.save(self.file, {"step": step, "finished": self.finished, "state": state})
        self.runtime.flush()

    def _restore(self) -> tuple[int, bool]:
        if self.file is None or not run_files.is_there(self.file):
            return 0, False
        point = checkpoint.load(self.file)
        saved = run_files.check(run_files.StagePoint, point, where=self.file, error=CheckpointError)
        if set(saved["state"]) != set(self.state):
            raise CheckpointError(
                f"stage '{self.stage}' saved {sorted(saved['state'])}, now {sorted(self.state)}",
                where=str(self.file),
                todo="Delete the run's folder to start again.",
            )
        for name, item in self.state.items():
            with run_files.fitting(self.file, what=f"stage '{self.stage}', {name}"):
                _restore_into(item, saved["state"][name], where=f"{self.file}: {name}")
        return saved["step"], saved["finished"]


def _state_of(item: Any) -> Any:
    return dict(item) if isinstance(item, Mapping) else item.state_dict()


def _restore_into(item: Any, saved: Any, *, where: str) -> None:
    if not isinstance(item, Mapping):
        item.load_state_dict(saved)
        return
    if {k: tuple(v.shape) for k, v in item.items()} != {k: tuple(v.shape) for k, v in saved.items()}:
        raise CheckpointError("the tensors have other names or shapes", where=where)
    with torch.no_grad():
        for name, tensor in item.items():
            tensor.copy_(saved[name])
