"""Where and how a run takes place: device, precision, processes, keyed randomness, log, resumable steps.

A thin face over `accelerate`. Knows nothing of methods, models or data.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from perdure.errors import (
    MissingExtra,
    PerdureError,
    RecipeError,
    printable,
    system_explained,
)
from perdure.keys import key_seed
from perdure.run_folder import events
from perdure.run_folder.events import Events
from perdure.runtime import collectives, compiling, devices, zero
from perdure.runtime.precision import Matmul, Precision, require, set_matmul
from perdure.runtime.progress import Outlook, Progress
from perdure.runtime.stages import Steps
from perdure.runtime.stepping import Stepper, WholeOptimizer

TRACKERS = ("tensorboard", "trackio", "wandb", "mlflow")


class Runtime:
    """Device, precision, processes, randomness, log and stages of one run.

    Args:
        seed: all randomness derives from it and from keys.
        device: ``auto`` (the best there is), ``cpu``, ``cuda``, ``cuda:1``, ``xpu`` or ``mps``. Among several processes
            each has its own, which accelerate chooses.
        precision: autocast of forward passes; weights stay as they were loaded.
        matmul: products of float32 numbers in full, or (`high`) in TF32 where the device can.
        compile: torch.compile of the layers that models repeat, where they are placed.
        out: the run's folder; None keeps nothing on disk.
        save_every: seconds between mid-task checkpoints.
        unreadable: what to do with an example that cannot be decoded: ``stop`` or ``skip``.
        workers: loader processes.
        threads: CPU threads of torch; None leaves torch's choice.
        trackers: names of experiment trackers that accelerate knows; none by default.
        quiet: no progress.
        features: folder of frozen features that runs share, if they do.
    """

    compiled_layers = 0
    """Counted where models are placed."""
    of_runs, runs_after = "", 0
    """Which of several runs this is, in words (``seed 1 (2 of 3)``), and how many follow it."""
    place = ""
    """Where the run is, in words; set task by task."""
    outlook: Outlook | None = None
    """By which a person is told how long it still takes."""

    def __init__(
        self,
        *,
        seed: int = 0,
        device: str = "auto",
        precision: Precision = "float32",
        matmul: Matmul = "highest",
        compile: bool = False,
        out: Path | None = None,
        save_every: float = 300.0,
        unreadable: Literal["stop", "skip"] = "stop",
        workers: int = 0,
        threads: int | None = None,
        trackers: Sequence[str] = (),
        quiet: bool = False,
        features: Path | None = None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.seed, self.precision, self.workers, self.unreadable = seed, precision, workers, unreadable
        self.out, self.save_every, self.quiet, self.compile, self.features = out, save_every, quiet, compile, features
        require(precision, device)
        set_matmul(matmul)
        self.accelerator = _accelerator(device, precision, out, trackers)
        self.device: torch.device = self.accelerator.device
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.accelerator.is_main_process
        self.zero = zero.stage_asked() if self.processes > 1 else 0
        """Stage of DeepSpeed's ZeRO: 2 or 3; 0 without it."""
        fsdp = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        self.sharded = self.processes > 1 and (fsdp or self.zero > 0)
        """Weights or gradients are sharded over processes (`sharding`, `zero`): all must make the same passes."""
        if self.zero and precision == "fp16":
            raise RecipeError("run.precision is fp16 with DeepSpeed", expected="float32 or bf16")
        if compile:
            compiling.require(self.device.type, sharded=self.sharded)
        self.task = -1
        """Index of the task being learned: a part of every key."""
        self.stage, self.batch_size = "", 0
        """Stage at work and the examples of its batches, for messages; 0 where it has none."""
        self.skipped: dict[str, str] = {}
        """Unreadable examples by id, with the reason."""
        self.stop_requested = False
        """Set by a signal handler: the next step saves and raises `Interrupted`."""
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        self._events, self._tracked = Events(), 0
        """Training steps in the log, of all tasks and stages: trackers want a number that only grows."""
        if trackers:
            self.accelerator.init_trackers("perdure")
            self._tracked = events.count_steps(out / "events.jsonl") if out is not None else 0

    # -- randomness -------------------------------------------------------------------------------------

    def key(self, *key: Any) -> int:
        """Seed of (run's seed, task, key)."""
        return key_seed(self.seed, self.task, *key)

    def generator(self, *key: Any) -> torch.Generator:
        """A CPU generator of (seed, task, key)."""
        return torch.Generator().manual_seed(self.key(*key))

    def permutation(self, n: int, *key: Any) -> Tensor:
        """An order of 0..n-1. Every shuffled order of a run comes from here."""
        return torch.randperm(n, generator=self.generator("order", *key))

    def normal(self, shape: Sequence[int], *key: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard Gaussian noise on the CPU. All Gaussian noise of a method comes from here."""
        return torch.randn(*shape, generator=self.generator("normal", *key), dtype=dtype)

    # -- numbers ----------------------------------------------------------------------------------------

    def autocast(self):
        """Context of a forward pass in the run's precision."""
        return nullcontext() if self.precision == "float32" else self.accelerator.autocast()

    def backward(self, loss: Tensor) -> None:
        """Backward pass, scaled where fp16 needs it."""
        if self.accelerator.scaler is None:
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def prepare(self, optimizer: torch.optim.Optimizer, *, clip_norm: float | None) -> tuple[Stepper, dict[str, Any]]:
        """The optimizer as this runtime steps it, and what else of its stage must be saved (the fp16 scaler).

        One optimizer is in use at a time: accelerate would unscale the gradients of all that it has seen."""
        self.accelerator._optimizers.clear()
        if self.zero:
            add = self.add_gradients
            return zero.PartedOptimizer(optimizer, clip_norm=clip_norm, device=self.device, add_gradients=add), {}
        scaler = self.new_scaler()
        if scaler:  # accelerate's wrapper looks for packages on disk at every step
            optimizer = self.accelerator.prepare_optimizer(optimizer)
        clip = None if clip_norm is None else partial(self.accelerator.clip_grad_norm_, max_norm=clip_norm)
        whole = WholeOptimizer(optimizer, backward=self.backward, add_gradients=self.add_gradients, clip=clip)
        return whole, scaler

    def new_scaler(self) -> dict[str, Any]:
        """What a stage that steps by `step` must save: in fp16 a fresh scaler of losses, else nothing."""
        if self.accelerator.scaler is None:
            return {}
        self.accelerator.scaler = torch.amp.GradScaler(self.device.type)
        return {"scaler": self.accelerator.scaler}

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """A step of an optimizer that `prepare` has not seen, after `backward`: unscaled, and left out where a
        gradient has overflowed, in fp16."""
        scaler = self.accelerator.scaler
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()

    def add_gradients(self, parameters: Sequence[Tensor], *, also: Sequence[Tensor] = ()) -> list[Tensor]:
        """Sum gradients over processes, in place; absent ones count as zero. Returns the sums of `also`, which travel
        with them. All processes must call it."""
        if self.processes == 1:
            return list(also)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        sums = collectives.summed([*gradients, *also])
        for parameter, total in zip(parameters, sums):
            parameter.grad = total
        return sums[len(parameters) :]

    def gather(self, items: list[Any]) -> list[Any]:
        """Lists of all processes, joined in order of rank."""
        if self.processes == 1:
            return items
        parts: list[list[Any]] = [[] for _ in range(self.processes)]
        torch.distributed.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def agreed(self, wish: bool) -> bool:
        """Whether any process wishes it. All processes must ask, and wait for each other."""
        return any(self.gather([wish]))

    def main_first(self, act: Callable[[], None]) -> None:
        """`act` in the main process while the others wait; what it raises for a user to mend is raised in all."""
        fault: PerdureError | None = None
        if self.main:
            try:
                with system_explained():
                    act()
            except PerdureError as raised:
                fault = raised
        for found in self.gather([fault]):
            if found is not None:
                raise found

    def wait(self) -> None:
        """Barrier of all processes."""
        if self.processes > 1:
            self.accelerator.wait_for_everyone()

    def peak_memory(self) -> dict[str, int]:
        """Peak bytes: resident set of this process and, on a GPU, torch's allocations."""
        scale = 1 if sys.platform == "darwin" else 1024
        peak = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}
        gpu = devices.peak_memory(self.device)
        return peak if gpu is None else peak | {"gpu": gpu}

    # -- log --------------------------------------------------------------------------------------------

    def log(self, event: str, **values: Any) -> None:
        """Append an event to ``events.jsonl``. Tensors are read only when the log is flushed.

        With `share`, the process's share of a step's examples, what is written is the mean over processes; all of them
        must log the event."""
        self._events.add(event, self.task, values)
        if self.processes == 1 and self._events.are_due():
            self.flush()

    def flush(self) -> None:
        """Write and sync all events that wait. All processes must call it."""
        lines = self._events.take(self.gather if self.processes > 1 else None)
        if not (lines and self.main):
            return
        for line in lines if self.accelerator.trackers else ():
            self._tracked += line["event"] == "step"
            self.accelerator.log(events.numbers(line), step=self._tracked)
        if self.out is not None:
            events.write(self.out / "events.jsonl", lines)

    def say(self, text: str) -> None:
        """One line for the person who waits, on standard error, and in the run's ``log.txt``."""
        self.note(text)
        if self.main and not self.quiet:
            print(printable(text), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Lines of the run's ``log.txt``, each with date and time."""
        if self.main and self.out is not None:
            events.write_log(self.out / "log.txt", printable(text))

    def within(self, label: str) -> str:
        """A stage and where in the run it is, in words."""
        return f"{self.place}: {label}" if self.place else label

    def progress(self, label: str, *, total: int, start: int = 0) -> Progress:
        """What a person sees of a stage; see `Progress`."""
        show = self.main and not self.quiet
        left = self.outlook.left if self.outlook else lambda: None
        memory = lambda: max(self.peak_memory().values())  # noqa: E731
        return Progress(self.within(label), total=total, start=start, show=show, whole=left, memory=memory)

    # -- stages -----------------------------------------------------------------------------------------

    def steps(self, stage: str, *, total: int, state: Mapping[str, Any], label: str = "") -> Steps:
        """Resumable steps of one stage: see `Steps`."""
        return Steps(self, stage, total=total, state=state, label=label or stage)

    def stage_file(self, stage: str) -> Path | None:
        """Where the mid-task checkpoint of a stage lies."""
        return self.out and self.out / "checkpoint" / f"task_{self.task:04}" / f"{stage}.safetensors"

    def finish(self) -> None:
        """Flush the log and close trackers."""
        self.flush()
        if self.accelerator.trackers:
            self.accelerator.end_training()


def _accelerator(device: str, precision: Precision, out: Path | None, trackers: Sequence[str]):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import patch_environment

    for name in trackers:
        check_tracker(name)
    mixed = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    cpu = devices.set_for_accelerate(device)
    # accelerate keeps one global state a process; a second run in the same process may want another precision.
    AcceleratorState._reset_state(reset_partial_state=False)
    with patch_environment(ACCELERATE_USE_DEEPSPEED="false"):  # it would own the loop; `zero` takes its part of it
        return Accelerator(
            cpu=cpu,
            mixed_precision=mixed,
            log_with=list(trackers) or None,
            project_dir=str(out) if out and trackers else None,
        )


def check_tracker(name: str) -> None:
    """MissingExtra if a tracker is not installed."""
    from importlib.util import find_spec

    if name not in TRACKERS:
        raise RecipeError(f"run.trackers names '{name}'", expected=f"one of {', '.join(TRACKERS)}")
    if find_spec(name) is None:
        raise MissingExtra(f"the tracker '{name}' is not installed", todo=f'Type: pip install "perdure[{name}]"')
