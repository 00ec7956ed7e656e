"""Examples of several lengths and image sizes as one batch, by one rule for all families.

What a processor gives for each token is padded: on the right for learning, on the left for questions. Every other
tensor is padded in all dimensions but the first and concatenated along the first, for image features are placed in the
order of image tokens over the batch. Until a network is called, these stay a list, one mapping an example: their first
dimension counts patches, tiles or images, so a batch can be cut only by examples.

Knows tensors. Does not know processors or networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from perdure.models.language_model import IGNORE, padded
from perdure.models.vlm.conversation import TOKENWISE
from perdure.types import Batch


def collate(items: Sequence[Mapping[str, Any]], *, pad: int) -> Batch:
    """A batch of items: ids, mask, ``media`` (a list), ``has_image``, and ``labels`` where they are learned from."""
    longest, training = max(len(item["input_ids"]) for item in items), "labels" in items[0]
    batch: dict[str, Any] = {}
    for name in TOKENWISE:
        if any(name in item for item in items):
            rows = [item.get(name, torch.zeros_like(item["input_ids"])) for item in items]
            batch[name] = padded(rows, longest, pad if name == "input_ids" else 0, right=training)
    ones = [torch.ones_like(item["input_ids"]) for item in items]
    batch["attention_mask"] = padded(ones, longest, 0, right=training)
    batch["media"] = [item["media"] for item in items]
    batch["has_image"] = torch.tensor([bool(item["has_image"]) for item in items])
    if training:
        batch["labels"] = padded([item["labels"] for item in items], longest, IGNORE, right=True)
    if "position" in items[0]:
        batch["position"] = torch.tensor([item["position"] for item in items])
    return batch


def inputs(
    batch: Batch, *, dtype: torch.dtype, rows: Tensor | None = None, longest: int | None = None
) -> dict[str, Tensor]:
    """What a network takes.

    Args:
        dtype: of pixels.
        rows: of the batch that are taken; none: all.
        longest: of their lengths, where they are padded on the left.
    """
    device = batch["input_ids"].device
    chosen = range(len(batch["media"])) if rows is None else rows.tolist()
    found: dict[str, Tensor] = {}
    for name in (*TOKENWISE, "attention_mask"):
        if name in batch:
            found[name] = batch[name] if rows is None else batch[name][rows]
            found[name] = found[name] if longest is None else found[name][:, -longest:]
    media = [batch["media"][i] for i in chosen]
    for name in dict.fromkeys(key for one in media for key in one):
        joined = joined_along_first([one[name] for one in media if name in one]).to(device)
        # not so of times of a video's frames, from which positions are counted
        found[name] = joined.to(dtype) if name.startswith("pixel_values") else joined
    return found


def joined_along_first(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenated along the first dimension, the others filled up with zeros to the largest."""
    shape = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors))]
    filled = []
    for t in tensors:
        room = t.new_zeros(len(t), *shape)
        room[tuple(slice(size) for size in t.shape)] = t
        filled.append(room)
    return torch.cat(filled)
