"""MG-CLIP's optional memory of raw images of past classes, and the loss of batches that hold some.

Knows labels, logits and sequences of Examples. Does not know models or loops.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from perdure.runtime import Runtime
from perdure.types import Example, Task


def replay_loss(
    logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"], *, own: Sequence[int], weight: float
) -> Float[Tensor, ""]:
    """Local cross-entropy of the new images, plus `weight` times the cross-entropy over all classes of the old ones.

    New are the labels `own`, sorted. A batch without new, or without old images has no such term (the published code
    divides by zero there).
    """
    columns = torch.tensor(own, device=labels.device)
    new = torch.isin(labels, columns)
    places = torch.searchsorted(columns, labels).clamp(max=len(own) - 1)
    local = F.cross_entropy(logits[:, columns], places, reduction="none")
    everything = F.cross_entropy(logits, labels, reduction="none")
    return _mean_where(local, new) + weight * _mean_where(everything, ~new)


def _mean_where(losses: Float[Tensor, " images"], chosen: Tensor) -> Float[Tensor, ""]:
    return torch.where(chosen, losses, 0).sum() / chosen.sum().clamp(min=1)


def update_memory(memory: Sequence[Example], task: Task, *, size: int, runtime: Runtime) -> list[Example]:
    """A memory of at most `size` examples, equally many of each class seen.

    Classes already there are cut to their first examples; the task's are drawn at random, keyed by class.
    Labels of the task itself are drawn anew; of a class that comes again from the memory and the task together.
    """
    own = task.labels
    kept = [example for example in memory if example.target not in own]
    quota = size // len({example.target for example in kept} | set(own))
    cut: list[Example] = []
    count: dict[int, int] = {}
    for example in kept:
        count[example.target] = count.get(example.target, 0) + 1
        if count[example.target] <= quota:
            cut.append(example)
    for label in own:
        places = [i for i, target in enumerate(task.train.targets) if target == label]
        earlier = [example for example in memory if example.target == label] if label < task.offset else []
        order = runtime.permutation(len(earlier) + len(places), "memory", label)[:quota]
        cut += [earlier[i] if i < len(earlier) else task.train[places[i - len(earlier)]] for i in order.tolist()]
    return cut
