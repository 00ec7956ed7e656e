"""What rehearsal methods and their baselines share: images in memory, steps over them, a predictor.

Knows a task's images and labels as tensors, batches in a keyed (or the stream's own) order, and one descent
step. Does not know any method's loss, nor what a memory holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from perdure.errors import DataError, RecipeError, TrainingError
from perdure.families.rehearsal import augment as augmentation
from perdure.families.rehearsal import gradients, heads
from perdure.families.rehearsal.augment import Augment
from perdure.families.rehearsal.buffer import Draws, Memory
from perdure.images import open_image
from perdure.loading import ONE_SIZE, ExampleBatches
from perdure.runtime import Runtime
from perdure.runtime.stepping import clear_gradients
from perdure.training import Finite, in_one_launch
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Images:
    """The training images of a task, on the device."""

    images: Tensor
    """uint8 (or floating, in [0, 1]) [images, channels, height, width]"""
    labels: Tensor
    """int64 [images]"""
    cuts: tuple[int, ...] | None = None
    """Sizes of the batches, where the stream says so (general continual learning): one pass, in order."""


@dataclass(frozen=True, kw_only=True)
class At:
    """Position of a step within the task."""

    step: int
    epoch: int
    index: Tensor
    """Places of the batch's images among the task's."""


Step = Callable[[Tensor, Tensor, At], Mapping[str, Tensor]]
"""(raw images, labels, where) -> values to log; "loss" must be finite. Does the descent itself."""


def preprocess(example: Example, training: bool) -> Batch:
    """uint8 [channels, height, width] and the label. A floating tensor stays as it is."""
    image = example.inputs["image"]
    if not isinstance(image, Tensor):
        if not isinstance(image, np.ndarray):
            image = np.array(open_image(image, where=example.id))
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return {"image": image, "label": -1 if example.target is None else int(example.target)}


def read(
    task: Task,
    net: nn.Module,
    runtime: Runtime,
    *,
    stored: Mapping[str, Tensor] | None = None,
    grows: bool = False,
) -> Images:
    """All training images of a task, decoded once.

    Args:
        stored: columns of images of earlier tasks, to which these will be added.
        grows: give the network outputs for classes of a task that came after the run was made (`heads.grow`).

    Raises:
        DataError: images of unequal sizes, or of another size than the stored ones, or a label that the network
            has no output for.
        RecipeError: more than one process.
    """
    if runtime.processes > 1:
        raise RecipeError("rehearsal methods keep one memory", expected="one process")
    batches = ExampleBatches(task.train, preprocess, batch_size=512, runtime=runtime, stage="read", training=False)
    parts = [batch for batch, _ in batches.epoch(0) if batch is not None]
    where = f"task {task.index + 1} ({task.name})"
    if not parts:
        raise TrainingError("there is no training image", where=where)
    _require_one_size([part["image"] for part in parts], where=where)
    if stored:
        _require_one_size([stored["image"], parts[0]["image"]], where=f"{where}, after the images of earlier tasks")
    labels = torch.cat([part["label"] for part in parts])
    needed = task.offset + len(task.candidates)
    if grows and task.facts.get("appended") and needed > cast(Any, net).classes:
        heads.grow(net, needed, runtime)
    check_labels(labels, classes=cast(Any, net).classes, where=where)
    cuts = task.facts.get("batches")
    return Images(
        images=torch.cat([part["image"] for part in parts]),
        labels=labels,
        cuts=tuple(cuts) if cuts is not None else None,
    )


def check_labels(labels: Tensor, *, classes: int, where: str) -> None:
    """Every label has an output of the head."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise DataError(
            f"label {int(wrong[0])}",
            where=where,
            expected=f"0 to {classes - 1}: the network has {classes} outputs",
            todo="Set the model's `classes` to all classes of the stream.",
        )


class Settings(Protocol):
    """The settings that methods which descend by plain SGD have alike."""

    @property
    def lr(self) -> float: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def milestones(self) -> Sequence[int]: ...


def learn(
    loss: Step,
    data: Images,
    net: nn.Module,
    settings: Settings,
    *,
    runtime: Runtime,
    keep: Mapping[str, Any] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    after: Callable[[], None] | None = None,
) -> None:
    """Train the whole network down the gradient of a loss: the stage ``train``.

    Args:
        loss: a `Step` that leaves the descent to this function.
        keep: what else changes meanwhile (a memory), saved and restored with the stage.
        optimizer: by default plain SGD.
        after: called after each descent.
    """
    descent = optimizer or sgd(net, settings.lr)

    def step(images: Tensor, labels: Tensor, at: At) -> Mapping[str, Tensor]:
        with runtime.autocast():
            values = loss(images, labels, at)
        descend(values["loss"], descent, runtime)
        if after is not None:
            after()
        return values

    _train(step, data, net, settings, descent, runtime, keep)


def learn_along(
    gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    data: Images,
    net: nn.Module,
    settings: Settings,
    *,
    runtime: Runtime,
    keep: Mapping[str, Any] | None = None,
) -> None:
    """As `learn`, in full precision, along ``gradient(raw images, labels) -> (loss, gradient as one vector)``."""
    optimizer, parameters = sgd(net, settings.lr), list(net.parameters())

    def step(images: Tensor, labels: Tensor, at: At) -> Mapping[str, Tensor]:
        loss, g = gradient(images, labels)
        descend_along(g, loss, optimizer, parameters)
        return {"loss": loss.detach()}

    _train(step, data, net, settings, optimizer, runtime, keep)


def _train(
    step: Step,
    data: Images,
    net: nn.Module,
    settings: Settings,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    keep: Mapping[str, Any] | None,
) -> None:
    """The stage ``train``: the network in training mode, at the epoch's learning rate."""

    def prepared(images: Tensor, labels: Tensor, at: At) -> Mapping[str, Tensor]:
        enter_training(net)
        set_lr(optimizer, settings.lr, settings.milestones, at.epoch)
        return step(images, labels, at)

    size = settings.batch_size
    state = {"net": net, **(keep or {})}
    train(prepared, data, epochs=settings.epochs, batch_size=size, runtime=runtime, stage="train", state=state)


def train(
    step: Step,
    data: Images,
    *,
    epochs: int,
    batch_size: int,
    runtime: Runtime,
    stage: str,
    state: Mapping[str, Any],
) -> None:
    """Call `step` for every batch of every epoch, resumably.

    Args:
        state: all that `step` changes: network, optimizer, memory ...

    Raises:
        TrainingError: a loss or a weight is not finite; the last good checkpoint is kept.
    """
    count = len(data.labels)
    if data.cuts is not None and epochs != 1:
        what = f"{epochs} epochs over a stream without tasks"
        raise RecipeError(what, where="method.epochs", expected="1", todo="Set method.epochs=1.")
    cuts = data.cuts or batch_sizes(count, batch_size)
    ends = np.cumsum(cuts)
    steps = runtime.steps(stage, total=epochs * len(cuts), state={**state, **runtime.new_scaler()})
    nets = [item for item in state.values() if isinstance(item, nn.Module)]
    images = data.images[:1]
    guard = Finite(steps, [p for net in nets for p in net.parameters()], cause=lambda: first_bad_layer(nets, images))
    order, of_epoch = torch.empty(0), -1
    for number in steps:
        runtime.batch_size = batch_size
        epoch, within = divmod(number, len(cuts))
        if epoch != of_epoch:
            shuffled = data.cuts is None
            order = runtime.permutation(count, stage, epoch) if shuffled else torch.arange(count)
            of_epoch = epoch
        index = order[ends[within] - cuts[within] : ends[within]].to(data.labels.device, non_blocking=True)
        images = data.images[index]
        values = step(images, data.labels[index], At(step=number, epoch=epoch, index=index))
        guard.check(values["loss"], number)
        steps.shown = {"loss": values["loss"].detach()}
        runtime.log("step", stage=stage, step=number, epoch=epoch, **values)


def batch_sizes(count: int, batch_size: int) -> tuple[int, ...]:
    """Whole batches and the rest."""
    whole, rest = divmod(count, batch_size)
    return (batch_size,) * whole + ((rest,) if rest else ())


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, runtime: Runtime) -> None:
    """One step of the optimizer down the gradient of `loss`.

    On the CPU a loss that is not finite changes nothing, so that `train` can say where it arose.
    """
    if not loss.is_cuda and not math.isfinite(loss.item()):
        return
    clear_gradients(optimizer)
    runtime.backward(loss)
    runtime.step(optimizer)


def descend_along(g: Tensor, loss: Tensor, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """One step of the optimizer with the gradient `g` (one vector); nothing if `loss` is not finite (CPU)."""
    if loss.is_cuda or math.isfinite(loss.item()):
        gradients.assign(g, parameters)
        optimizer.step()


def agreeing_gradient(
    loss: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    net: nn.Module,
    memory: Memory,
    draws: Draws,
    count: int,
) -> tuple[Tensor, Tensor]:
    """A-GEM: the loss, and its gradient without what would raise the loss on `count` images from memory."""
    parameters = list(net.parameters())
    now = loss(images, labels)
    g = gradients.gradient(now, parameters)
    replay = memory.draw(count, draws)
    if replay is not None:
        past = loss(replay["image"], replay["label"].to(now.device))
        g = gradients.without_conflict(g, gradients.gradient(past, parameters))
    return now, g


def sgd(net: nn.Module, lr: float) -> torch.optim.SGD:
    """Plain SGD over all parameters: no momentum, no weight decay."""
    return torch.optim.SGD(net.parameters(), lr=lr, fused=in_one_launch(net.parameters()))


def enter_training(net: nn.Module) -> None:
    """Training mode of all modules; where the network is in it already, the walk through them is saved."""
    if not net.training:
        net.train()


def set_lr(optimizer: torch.optim.Optimizer, lr: float, milestones: Sequence[int], epoch: int) -> None:
    """`lr`, a tenth of it from each milestone (an epoch) on."""
    for group in optimizer.param_groups:
        group["lr"] = lr * 0.1 ** sum(epoch >= m for m in milestones)


def augmented(images: Tensor, augment: Augment, draws: Draws, net: nn.Module) -> Tensor:
    """What the network is trained on: raw images, augmented afresh, in the network's type."""
    if augment == "crop_flip":
        images = augmentation.crop_and_flip(images, draws.uniforms(len(images), 3, of="augment"))
    return network_input(images, net)


def network_input(images: Tensor, net: nn.Module) -> Tensor:
    """Raw images in the type and on the device of the network's weights.

    A pixel's channels become neighbors in memory: convolutions on a CPU are up to a third quicker so.
    """
    weight = next(net.parameters())
    x = augmentation.as_float(images.to(weight.device, non_blocking=True), weight.dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def predictor(net: nn.Module, query: Query) -> Callable[[Batch], Tensor]:
    """Logits of the query's candidates from the plain network in evaluation mode."""
    net.eval()
    columns = slice(query.offset, query.offset + len(query.candidates))
    return lambda batch: net(network_input(batch["image"], net))[:, columns]


def whole_network(method: Any, how: str) -> Mapping[str, Tensor]:
    """What `merge` merges of a method whose one network is all that it trains: as class attribute, `merged`."""
    return dict(method.net.named_parameters())


def network_state(net: nn.Module) -> dict[str, Tensor]:
    """A copy of parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def _require_one_size(images: Sequence[Tensor], *, where: str) -> None:
    sizes = list(dict.fromkeys(tuple(image.shape[1:]) for image in images))
    if len(sizes) > 1:
        raise DataError(
            f"images of {len(sizes)} sizes: {list(sizes[0])} and {list(sizes[1])}",
            where=where,
            expected="one size",
            todo=ONE_SIZE,
        )


@torch.no_grad()
def first_bad_layer(nets: Sequence[nn.Module], images: Tensor) -> str:
    """Which layer of the first (plain) network is the first with a weight or an output that is not finite."""
    net = nets[0]
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, output: Tensor) -> None:
            tensors = [output, *module.parameters()]
            if not found and not all(bool(torch.isfinite(t).all()) for t in tensors):
                found.append(name)

        return hook

    leaves = [(name, module) for name, module in net.named_modules() if not list(module.children())]
    hooks = [module.register_forward_hook(look(name)) for name, module in leaves]
    training = net.training
    net.eval()(network_input(images, net))
    net.train(training)
    for hook in hooks:
        hook.remove()
    found += [name for name, p in net.named_parameters() if not torch.isfinite(p).all()]
    return f"first in layer {found[0]}" if found else ""
