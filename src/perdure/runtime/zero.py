"""DeepSpeed's ZeRO under our own loop: gradients and optimizer in parts (stages 2 and 3), frozen matrices too (3).

Trained parameters stay whole in every process. Knows DeepSpeed, modules and tensors. Does not know methods, what a
model is for, or where a run takes place.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from perdure.errors import MissingExtra, RecipeError
from perdure.runtime.stepping import Sums


def stage_asked() -> int:
    """ZeRO's stage in accelerate's configuration; 0 without DeepSpeed.

    Raises:
        RecipeError: a stage or setting that is not supported.
        MissingExtra: DeepSpeed is not installed.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return 0
    for name, (supported, expected, todo) in _SUPPORTED.items():
        found = os.environ.get(f"ACCELERATE_{name}", supported[0])
        if found not in supported:
            where = "deepspeed_config in accelerate's configuration"
            setting = name.lower().removeprefix("deepspeed_")
            raise RecipeError(f"{setting}: {found}", where=where, expected=expected, todo=todo)
    if find_spec("deepspeed") is None:
        raise MissingExtra("DeepSpeed is not installed", todo='Type: pip install "perdure[deepspeed]"')
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))


_NO_OFFLOAD = (("none",), "none", "Take --config_file $(perdure launch fsdp_offload).")
_SUPPORTED = {
    "DEEPSPEED_CONFIG_FILE": (("none",), "zero_stage in its place", "See perdure launch zero3."),
    "DEEPSPEED_ZERO_STAGE": (("2", "3"), "2 or 3", ""),
    "DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": _NO_OFFLOAD,
    "DEEPSPEED_OFFLOAD_PARAM_DEVICE": _NO_OFFLOAD,
    "GRADIENT_ACCUMULATION_STEPS": (("1", "auto"), "none", "Set the recipe's tuning.accumulate."),
    "GRADIENT_CLIPPING": (("auto",), "none", "Set the recipe's tuning.clip_norm."),
}
"""By variable that accelerate sets: what may be in it, the first by default."""


class PartedOptimizer:
    """An optimizer of which each process holds a part of the gradients, of the moments and of float32 parameters.

    DeepSpeed sees twins of the parameters, in the same memory: it reduces gradients in the order in which a backward
    pass ends with them, and mixes them up where that differs between processes (images in one batch, none in another).

    Args:
        optimizer: any of torch's that works element by element; its parameters are all trained.
        clip_norm: max norm of the gradient of all parameters.
        add_gradients: sums over processes of what travels beside DeepSpeed's gradients.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None,
        device: torch.device,
        add_gradients: Sums,
    ) -> None:
        self._add = add_gradients
        self.groups: list[list[Tensor]] = [list(group["params"]) for group in optimizer.param_groups]
        self.parameters = [p for group in self.groups for p in group]
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group["params"] = [nn.Parameter(p.data) for p in group["params"]]
        self.twins = [twin for group in optimizer.param_groups for twin in group["params"]]
        settings = {
            "gradient_clipping": clip_norm or 0.0,
            "managed_gradient_accumulation": False,  # `step` says when a step ends
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        self.engine = _engine(nn.ParameterList(self.twins), 2, device, settings, optimizer=optimizer)
        for parameter, twin in zip(self.parameters, self.twins):
            parameter.data = twin.data
        self.rank, self.processes = torch.distributed.get_rank(), torch.distributed.get_world_size()

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def backward(self, loss: Tensor | None) -> None:
        """Add the gradient of the sum of all processes' losses; all of them must call it equally often.

        None: this process has no loss."""
        if loss is not None:
            (loss * self.processes).backward()  # DeepSpeed takes the mean over processes
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        self.engine.backward(_Given.apply(gradients, *self.twins))
        for parts in _ALIVE:
            parts.backward_ended()

    def step(self, also: Sequence[Tensor]) -> list[Tensor]:
        """Clip and step; parameters are then the same in all processes."""
        sums = self._add([], also=also)
        self.engine.step()
        increment_version(self.parameters)  # they were written behind autograd's back
        return sums

    def close(self) -> None:
        """Give the moments' memory back."""
        self.engine.destroy()
        self.optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """As torch's optimizer in one process gives it, on the CPU; all processes must ask.

        Parameters of less than float32 have their values of that type too, as ``master``.
        """
        state: dict[int, dict[str, Any]] = {}
        for parameters, group in zip(self.groups, self.optimizer.param_groups):
            part, first = group["params"][0], len(state)
            state |= {first + i: {} for i in range(len(parameters))}
            kept = dict(self.optimizer.state.get(part, {}))
            if kept and parameters[0].dtype != part.dtype:
                kept["master"] = part.detach()
            for key, value in kept.items():
                for i, own in enumerate(self._whole(value, part, parameters)):
                    state[first + i][key] = own
        return {"state": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave here or with other numbers of processes, after the parameters were set."""
        saved = iter(state["state"][i] for i in range(len(self.parameters)))
        for parameters, group in zip(self.groups, self.optimizer.param_groups):
            part, own = group["params"][0], [next(saved) for _ in parameters]
            part.data.copy_(self._part([_master(s.get("master"), p) for s, p in zip(own, parameters)], part))
            self.optimizer.state[part] = {
                key: self._part([s[key] for s in own], part) if _is_parted(own[0][key]) else own[0][key]
                for key in own[0]
                if key != "master"
            }

    def _whole(self, value: Any, part: Tensor, parameters: Sequence[Tensor]) -> list[Any]:
        """One value a parameter: DeepSpeed lays a group's parameters end to end and cuts that evenly."""
        if not _is_parted(value):
            return [value.clone() if isinstance(value, Tensor) else value for _ in parameters]
        joined = part.new_empty(self.processes * part.numel(), dtype=value.dtype)
        torch.distributed.all_gather_into_tensor(joined, value.contiguous())
        sizes = [p.numel() for p in parameters]
        return [t.view(p.shape) for t, p in zip(joined.cpu()[: sum(sizes)].split(sizes), parameters)]

    def _part(self, values: Sequence[Tensor], part: Tensor) -> Tensor:
        """The inverse of `_whole`: what of a group's values is this process's."""
        joined = torch.zeros(self.processes * part.numel(), dtype=part.dtype)
        flat = torch.cat([v.detach().flatten().to(joined) for v in values])
        joined[: len(flat)] = flat
        return joined.view(self.processes, -1)[self.rank].to(part.device)


class _Given(torch.autograd.Function):
    """A loss whose gradients are given."""

    @staticmethod
    def forward(ctx: Any, gradients: list[Tensor], *twins: Tensor) -> Tensor:
        ctx.gradients = gradients
        return twins[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, []
        return None, *gradients


class Parts:
    """Sharded frozen weights of blocks, gathered only while their layer runs.

    Layers whose own parameters are frozen and hold a matrix take part. Vectors stay whole.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.blocks = [[m for m in block.modules() if _is_frozen_matrix(m)] for block in blocks]
        layers = nn.ModuleList(m for block in self.blocks for m in block)
        self.engine = _engine(layers, 3, device, {}, param_persistence_threshold=0)
        self.offload = self.engine.optimizer
        self.held = ExitStack()
        self.whole = False
        # every process then makes the same backward pass, with images in its batch or without
        blocks[0].register_forward_pre_hook(_input_with_gradient)
        _ALIVE.add(self)

    def gather(self) -> None:
        """Whole in every process until `share`, and free of hooks."""
        if self.whole:
            return
        self.offload.partition_all_parameters()
        for hook in (*self.offload.forward_hooks, *self.offload.backward_hooks):
            hook.remove()
        self.offload.forward_hooks, self.offload.backward_hooks = [], []
        gathered = import_module("deepspeed").zero.GatheredParameters
        for block in self.blocks:
            self.held.enter_context(gathered([p for m in block for p in m.parameters()]))
        self.whole = True

    def share(self) -> None:
        """Undo `gather`."""
        if self.whole:
            self.held.close()
            self.offload._register_deepspeed_module(self.offload.module)
            self.whole = False

    def backward_ended(self) -> None:
        """Forget the order of a pass, or learn it: the next one fetches ahead."""
        if not self.whole:
            self.offload.release_backward_leftovers()
            self.offload.get_param_coordinator().reset_step()


_ALIVE: WeakSet[Parts] = WeakSet()


def share(blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Put the frozen matrices of blocks in parts, or put them there again."""
    blocks = list(blocks)
    if (parts := parts_of(blocks)) is not None:
        parts.share()
    else:
        blocks[0]._perdure_parts = Parts(blocks, device)  # type: ignore[assignment]


def parts_of(blocks: Iterable[nn.Module]) -> Parts | None:
    """What `share` made of blocks."""
    return next((b._perdure_parts for b in blocks if "_perdure_parts" in vars(b)), None)  # type: ignore[return-value]


def is_parted(tensor: Tensor) -> bool:
    """A matrix that `share` put in parts, gathered at the moment or not."""
    return hasattr(tensor, "ds_id")


def whole(tensor: Any) -> Tensor:
    """A matrix in parts; all processes must ask."""
    if _is_available(tensor):
        return tensor.detach()
    with import_module("deepspeed").zero.GatheredParameters([tensor]):
        return tensor.detach().clone()


def put(target: Any, value: Tensor) -> None:
    """Write a whole tensor, the same in all processes, into a matrix in parts."""
    available = _is_available(target)
    if not available:
        target.all_gather()
    target.data.copy_(value)
    target.partition(has_been_updated=True)
    if available:
        target.all_gather()


def _engine(model: nn.Module, stage: int, device: torch.device, settings: dict, optimizer: Any = None, **zero: Any):
    """DeepSpeed's engine over `model`, through which no pass goes."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed = import_module("deepspeed")
    import_module("deepspeed.utils").logger.setLevel(logging.WARNING)
    # Else DeepSpeed compiles an operator for CPUs that ZeRO does not use.
    import_module("deepspeed.ops").__compatible_ops__["deepspeed_shm_comm"] = False
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage, **zero}, **settings}
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def _is_frozen_matrix(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return any(p.dim() > 1 for p in own) and not any(p.requires_grad for p in own)


def _is_available(tensor: Any) -> bool:
    return tensor.ds_status.name == "AVAILABLE"


def _is_parted(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _master(saved: Tensor | None, parameter: Tensor) -> Tensor:
    """The saved value where it is what the parameter was rounded from."""
    now = parameter.detach().cpu()
    if saved is None:
        return now
    return torch.where(saved.to(now.dtype) == now, saved, now.to(saved.dtype))


def _input_with_gradient(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    hidden, *rest = args
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_()
    return (hidden, *rest)
