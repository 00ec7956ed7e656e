"""A model's frozen weights sharded over processes (FSDP 2 or ZeRO 3), where accelerate's configuration asks for it.

Parameters that are trained stay whole in every process: they are small (low-rank updates, a projector). So penalties,
clipping and mid-task checkpoints see them as in one process, and a run is resumed by any number of processes.

Knows modules, their blocks and processes. Does not know methods or what the model is for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from perdure.errors import RecipeError
from perdure.runtime import Runtime, zero


def place(model: nn.Module, blocks: Iterable[nn.Module], *, runtime: Runtime) -> None:
    """In a sharded run, each process keeps a part of the frozen weights of `blocks`, and the rest is on its device.

    Without sharding the run has placed the model, and nothing happens. A block is whole only while it is at work. Call
    it again after `gather` to share out again. Every process must then make the same passes through the model.
    """
    if not runtime.sharded:
        return
    if runtime.zero == 3:
        zero.share(blocks, runtime.device)
    elif not runtime.zero:
        _shard(list(blocks), runtime)
    model.to(runtime.device)


def gather(blocks: Iterable[nn.Module]) -> None:
    """Keep shared blocks whole in every process until the next `place`: each may go through the model by itself."""
    if (parts := zero.parts_of(blocks)) is not None:
        parts.gather()
    for block in _shared(blocks):
        block.set_reshard_after_forward(False)
        block.unshard()


def in_parts(blocks: Iterable[nn.Module]) -> bool:
    """Whether ZeRO 3 shares out the blocks: a weight is then empty while its layer does not work."""
    return zero.parts_of(blocks) is not None


def whole(tensor: Tensor) -> Tensor:
    """A weight whose parts may lie in several processes; all of them must ask."""
    if zero.is_parted(tensor):
        return zero.whole(tensor)
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Write a whole tensor into a weight of which this process may hold a part."""
    if zero.is_parted(target):
        zero.put(target, value)
        return
    if not hasattr(target, "full_tensor"):
        target.copy_(value)
        return
    from torch.distributed.tensor import distribute_tensor

    value = value.to(target.device, target.dtype)
    target.copy_(distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None))  # type: ignore


def _shard(blocks: list[nn.Module], runtime: Runtime) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    settings = _settings()
    if not _shared(blocks):
        mesh = init_device_mesh(runtime.device.type, (runtime.processes,))
        for block in blocks:
            trained = {p for p in block.parameters() if p.requires_grad}
            fully_shard(block, mesh=mesh, ignored_params=trained, **settings)
    for block in _shared(blocks):
        block.reshard()
        block.set_reshard_after_forward(settings["reshard_after_forward"])


def _shared(blocks: Iterable[nn.Module]) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [block for block in blocks if isinstance(block, FSDPModule)]


def _settings() -> dict[str, Any]:
    """What accelerate's configuration says of sharding, as `fully_shard` takes it."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import OffloadPolicy

    plugin = FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise RecipeError("accelerate's configuration asks for FSDP 1", expected="fsdp_version: 2")
    offload = plugin.cpu_offload if isinstance(plugin.cpu_offload, OffloadPolicy) else OffloadPolicy()
    return {"reshard_after_forward": bool(plugin.reshard_after_forward), "offload_policy": offload}
