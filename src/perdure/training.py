"""Fitting parameters: optimizer, schedule, clipping, accumulation, several processes, mid-task checkpoints.

Knows parameters, losses and batches. Does not know methods, models or tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from perdure.errors import RecipeError, TrainingError
from perdure.loading import Batches, ExampleBatches
from perdure.runtime import Runtime, Steps
from perdure.runtime.stepping import Stepper
from perdure.types import Batch

Loss = Callable[[Batch], Tensor | Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Settings of one fit."""

    lr: float
    """Learning rate at factor 1 of the schedule; a Group may have its own."""
    epochs: int = 1
    """Passes over the batches."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    """Of SGD."""
    weight_decay: float = 0.0
    """Coupled L2 for adam and sgd, decoupled for adamw."""
    schedule: (
        Literal["constant", "cosine_epoch", "cosine_step", "multistep", "cosine_warmup", "linear_warmup"]
        | Callable[[int, int], float]
    ) = "constant"
    """`cosine_*` falls to `floor` of lr at the end; `*_warmup` rises linearly over `warmup_steps` first. A function of
    (epoch, step) gives the factor itself."""
    floor: float = 0.01
    """Lowest factor of `cosine_epoch` and `cosine_step`."""
    period: int | None = None
    """Epochs (or steps) over which the cosine falls; None: all of this fit."""
    milestones: tuple[int, ...] = ()
    """Epochs after which `multistep` multiplies by `gamma`."""
    gamma: float = 0.1
    warmup_steps: int = 0
    schedule_offset: int = 0
    """Steps that the schedule is ahead: 1 for code that moves the schedule before each step."""
    clip_norm: float | None = None
    """Max global norm for gradient clipping."""
    accumulate: int = 1
    """Gradient-accumulation steps of a batch: the same step in less memory."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters with settings of their own; None takes the Fit's."""

    parameters: Mapping[str, Tensor]
    lr: float | None = None
    weight_decay: float | None = None


Parameters = Mapping[str, Tensor] | Sequence[Group]


class History:
    """Loss of every step of a stage, kept on the device until it is read."""

    def __init__(self) -> None:
        self._saved: list[float] = []
        self._new: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        self._new.append(loss.detach())

    @property
    def losses(self) -> list[float]:
        """One float a step, since the stage began (also across a resume)."""
        if self._new:
            self._saved += torch.stack(self._new).tolist()
            self._new = []
        return self._saved

    def state_dict(self) -> dict[str, list[float]]:
        return {"losses": self.losses}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        self._saved, self._new = list(state["losses"]), []


def fit(
    loss: Loss,
    parameters: Parameters,
    batches: Batches,
    settings: Fit,
    *,
    runtime: Runtime,
    stage: str,
    keep: Mapping[str, Any] | None = None,
    until: Callable[[int], bool] | None = None,
) -> list[float]:
    """Minimize `loss` over `parameters`.

    Args:
        loss: batch -> mean over the batch's examples, or a dict with that under "loss"; the rest is logged.
            Parts of a step (processes, `accumulate`) are weighted by their examples, which is exact for such means.
        parameters: name -> parameter, or Groups.
        stage: unit of resuming and part of all keys; unique within a task.
        keep: other objects that change meanwhile, saved and restored with the stage.
        until: called with the epoch's index after each epoch; true ends the fit.

    Returns:
        The loss of every step.

    Raises:
        TrainingError: a loss or a weight is not finite; the last good checkpoint is kept.
    """
    groups = [Group(parameters=parameters)] if isinstance(parameters, Mapping) else list(parameters)
    tensors = [p for group in groups for p in group.parameters.values()]
    optimizer, scaler = runtime.prepare(make_optimizer(groups, settings), clip_norm=settings.clip_norm)
    history, per_epoch = History(), len(batches)
    trained = {f"{i}/{n}": p for i, group in enumerate(groups) for n, p in group.parameters.items()}
    saved = {"parameters": trained, "optimizer": _FlatOptimizer(optimizer), "history": history, **scaler}
    steps = runtime.steps(stage, total=settings.epochs * per_epoch, state={**saved, **(keep or {})})
    steps.together = per_epoch if until is not None else 1
    guard, epoch_batches = Finite(steps, tensors), None
    for step in steps:
        epoch, within = divmod(step, per_epoch)
        if epoch_batches is None or within == 0:
            epoch_batches = batches.epoch(epoch, start=within)
        _set_lr(optimizer, groups, settings, step, per_epoch)
        mean, values = _step(loss, *next(epoch_batches), optimizer, settings, runtime)
        history.add(mean)
        guard.check(mean, step)
        steps.shown = {"loss": mean}
        runtime.log("step", stage=stage, step=step, epoch=epoch, **values)
        if within == per_epoch - 1 and until is not None and until(epoch):
            steps.stop()
    optimizer.close()
    return history.losses


def make_optimizer(groups: Sequence[Group], settings: Fit) -> torch.optim.Optimizer:
    """The optimizer of `settings` over `groups`. RecipeError if its epsilon is 0 in the weights' type."""
    if settings.optimizer != "sgd":
        _require_epsilon((p for group in groups for p in group.parameters.values()), settings.eps)
    decay = settings.weight_decay
    lists = [
        {
            "params": list(group.parameters.values()),
            "lr": settings.lr if group.lr is None else group.lr,
            "weight_decay": decay if group.weight_decay is None else group.weight_decay,
        }
        for group in groups
    ]
    fused = in_one_launch(p for group in groups for p in group.parameters.values())
    if settings.optimizer == "sgd":
        return torch.optim.SGD(lists, lr=settings.lr, momentum=settings.momentum, fused=fused)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(lists, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused)


def _require_epsilon(parameters: Iterable[Tensor], eps: float) -> None:
    """Where epsilon rounds to 0, Adam divides by 0 at the first gradient that is 0, or whose square is."""
    for dtype in dict.fromkeys(p.dtype for p in parameters):
        if eps > 0 and torch.tensor(eps, dtype=dtype) == 0:
            name = str(dtype).removeprefix("torch.")
            raise RecipeError(
                f"weights in {name} are trained by Adam, whose epsilon of {eps:g} is 0 in {name}",
                expected="weights in float32 or bfloat16",
                todo="Set the model's `dtype: float32`; run.precision=bf16 or fp16 saves time on a GPU.",
            )


def in_one_launch(parameters: Iterable[Tensor]) -> bool | None:
    """Whether an optimizer steps all parameters by one kernel: on CUDA; None leaves it to torch."""
    return True if all(p.is_cuda for p in parameters) else None


def lr_factor(settings: Fit, step: int, per_epoch: int) -> float:
    """Factor of the learning rate at a step (0-based).

    Cosine: ``floor + (1 - floor)/2 (1 + cos(pi k/period))`` with k the epoch or the step.
    """
    step += settings.schedule_offset
    epoch, total = step // per_epoch, settings.epochs * per_epoch
    if callable(settings.schedule):
        return settings.schedule(epoch, step)
    match settings.schedule:
        case "constant":
            return 1.0
        case "cosine_epoch" | "cosine_step":
            by_epoch = settings.schedule == "cosine_epoch"
            period = settings.period or (settings.epochs if by_epoch else total)
            turn = math.cos(math.pi * (epoch if by_epoch else step) / period)
            return settings.floor + (1 - settings.floor) / 2 * (1 + turn)
        case "multistep":
            return settings.gamma ** sum(epoch >= milestone for milestone in settings.milestones)
        case "cosine_warmup" | "linear_warmup":
            warm = settings.warmup_steps
            if step < warm:
                return step / warm
            share = (step - warm) / max(total - warm, 1)
            return 0.5 * (1 + math.cos(math.pi * share)) if settings.schedule == "cosine_warmup" else 1 - share


def features(
    encode: Callable[[Batch], Mapping[str, Tensor]], batches: ExampleBatches, *, runtime: Runtime
) -> dict[str, Tensor]:
    """Run a frozen `encode` over all examples once: name -> [examples, ...] on the CPU, in the examples' order.

    The pass is shared over processes. Unreadable examples are left out; ``position`` says which are there. What
    autocast made is given as float32: what is done with features needs more digits than making them.
    """

    rows: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for batch, _ in batches.epoch(0):
            if batch is not None:
                with runtime.autocast():
                    out = encode(batch)
                rows.append(
                    {n: whole(v.detach(), runtime).cpu() for n, v in out.items()} | {"position": batch["position"]}
                )
    rows = runtime.gather(rows)
    require_rows(rows, stage=batches.stage)
    joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    order = joined["position"].argsort(stable=True)
    return {name: tensor[order] for name, tensor in joined.items()}


def whole(value: Tensor, runtime: Runtime) -> Tensor:
    """What autocast made, in float32."""
    half = value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half and runtime.precision != "float32" else value


def require_rows(rows: Sequence[Any], *, stage: str) -> None:
    """Raise a TrainingError where no example could be encoded."""
    if not rows:
        raise TrainingError("there is no example to encode", where=f"stage {stage}")


def _step(
    loss: Loss,
    batch: Batch | None,
    share: float,
    optimizer: Stepper,
    settings: Fit,
    runtime: Runtime,
) -> tuple[Tensor, dict[str, Any]]:
    """One optimizer step; returns its mean loss, and what to log: means over the examples here."""
    total: dict[str, Any] = {}
    if batch is None:  # another process has the rest of the examples
        for _ in range(settings.accumulate):
            optimizer.backward(None)
    for part, weight in _cut(batch, settings.accumulate, all_parts=runtime.sharded):
        with runtime.autocast():
            values = loss(part)
        values = values if isinstance(values, Mapping) else {"loss": values}
        optimizer.backward(values["loss"] * (weight * share))
        for name, value in values.items():
            total[name] = total.get(name, 0) + value.detach() * weight
    own = total.get("loss", torch.zeros((), device=runtime.device))
    part = own if runtime.processes == 1 else own.float() * share
    (mean,) = optimizer.step(also=[part])
    return mean, total if runtime.processes == 1 else {**total, "share": share}


def _cut(batch: Batch | None, parts: int, *, all_parts: bool = False) -> list[tuple[Batch, float]]:
    """Parts of a batch with their share of its examples.

    `all_parts`: never fewer than `parts`, padded with the first example at weight 0.
    """
    if batch is None:
        return []
    if parts == 1:
        return [(batch, 1.0)]
    n = len(batch["position"])
    size = math.ceil(n / parts)
    spans = [(i, min(i + size, n)) for i in range(0, n, size)]
    cut: list[tuple[Batch, float]] = [
        ({name: value[i:j] for name, value in batch.items()}, (j - i) / n) for i, j in spans
    ]
    if all_parts:
        cut += [({name: value[:1] for name, value in batch.items()}, 0.0)] * (parts - len(cut))
    return cut


def _set_lr(optimizer: Stepper, groups: Sequence[Group], settings: Fit, step: int, per_epoch: int) -> None:
    factor = lr_factor(settings, step, per_epoch)
    for entry, group in zip(optimizer.param_groups, groups):
        entry["lr"] = (settings.lr if group.lr is None else group.lr) * factor


class _FlatOptimizer:
    """An optimizer's state without the parts that the next step sets anew."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.optimizer.state_dict()["state"]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["state"]})


class Finite:
    """Stops a stage on a loss that is NaN or infinite, and lets no such weights be saved.

    On a GPU it looks only every 20 steps and before a save: looking waits for the device.

    Args:
        weights: what the stage trains.
        cause: gives what the message says about where it began.
    """

    EVERY = 20

    def __init__(self, steps: Steps, weights: Sequence[Tensor], *, cause: Callable[[], str] = lambda: "") -> None:
        self.stage, self.runtime, self.weights, self.cause = steps.stage, steps.runtime, weights, cause
        self.bad: Tensor | None = None
        self.step = 0
        self.eager = self.runtime.device.type == "cpu"
        steps.before_save = self.before_save

    def check(self, loss: Tensor, step: int) -> None:
        """Note a step's loss."""
        self.step = step
        if self.eager:
            if not math.isfinite(loss.item()):
                self._stop("the loss is not finite at")
            return
        bad = ~torch.isfinite(loss.detach())
        self.bad = bad if self.bad is None else self.bad | bad
        if step % self.EVERY == 0:
            self.raise_if_bad()

    def before_save(self) -> None:
        """The last step's loss was that of the weights before it."""
        self.raise_if_bad()
        if not all(bool(torch.isfinite(weight).all()) for weight in self.weights):
            self._stop("a weight is not finite after")

    def raise_if_bad(self) -> None:
        """TrainingError if a loss was not finite."""
        if self.bad is not None and bool(self.bad):
            self._stop("the loss is not finite at")

    def _stop(self, what: str) -> None:
        runtime, cause = self.runtime, self.cause()
        precise = "" if runtime.precision == "float32" else " or use run.precision=float32"
        kept = f"What {runtime.out} had saved is kept; the same command goes on from it." if runtime.out else ""
        raise TrainingError(
            f"{what} step {self.step}" + (f"; {cause}" if cause else ""),
            where=f"task {runtime.task + 1}, stage {self.stage}",
            expected="a finite number",
            todo=f"Lower the learning rate{precise}. {kept}".rstrip(),
        )
