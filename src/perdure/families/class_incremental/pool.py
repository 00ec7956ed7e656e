"""A pool of prompts with keys: each image takes the prompts whose keys are nearest to its query (Wang et al. 2022).

Knows keys, slots of tasks and votes. Does not know what a prompt is made of, nor how it is inserted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from perdure.families.class_incremental.settings import Pool
from perdure.layers.prompts import majority, similarities
from perdure.models.vit import Vit


class Prompts(nn.Module):
    """`vectors` of any shape and `keys` ``[pool dim]``."""

    def __init__(self, shape: Sequence[int], *, pool: int, like: Vit) -> None:
        super().__init__()
        self.vectors, self.keys = (
            nn.Parameter(torch.zeros(*sizes, dtype=like.dtype)) for sizes in (shape, (pool, like.dim))
        )


def choose(
    queries: Float[Tensor, "images dim"], keys: Float[Tensor, "pool dim"], settings: Pool, *, task: int | None
) -> tuple[Int[Tensor, "images top"], Float[Tensor, ""]]:
    """Prompts of each image, and the pull: the sum of cosines with the chosen keys, mean over images.

    Args:
        task: place of the task that is being learned; None in tests.
    """
    cosines = similarities(queries, keys)
    slots = None if task is None else slots_of(task, settings)
    if slots is not None:
        chosen = torch.arange(slots.start, slots.stop, device=keys.device).expand(len(queries), -1)
    else:
        chosen = cosines.topk(settings.top_k, dim=1).indices
        if settings.batchwise_eval if task is None else settings.batchwise:
            chosen = majority(chosen, settings.top_k).expand(len(queries), -1)
    return chosen, cosines.gather(1, chosen).sum() / len(queries)


def slots_of(task: int, settings: Pool) -> slice | None:
    """The prompts of a task's own, or None where it has none."""
    end = (task + 1) * settings.top_k
    return slice(end - settings.top_k, end) if settings.task_slots and end <= settings.pool else None


@torch.no_grad()
def begin(task: int, prompts: nn.Parameter, keys: nn.Parameter, settings: Pool, *, axis: int) -> None:
    """Copy the last task's prompts and keys to this task's slots, where the settings ask for it.

    Args:
        axis: of `prompts`, along which the pool lies.
    """
    if task == 0:
        return
    slots = slots_of(task, settings)
    if slots is not None:
        before = slice(slots.start - settings.top_k, slots.start)
        if settings.copy_prompts:
            index = [slice(None)] * axis
            prompts[(*index, slots)] = prompts[(*index, before)].clone()
        if settings.copy_keys:
            keys[slots] = keys[before].clone()
    elif settings.copy_keys and settings.official_key_copy and settings.pool // settings.top_k > 1:
        end = settings.pool // settings.top_k * settings.top_k
        keys[end - settings.top_k : end] = keys[end - 2 * settings.top_k : end - settings.top_k].clone()
