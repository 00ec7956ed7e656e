"""Training conversations as a state can hold them: JSON and tensors.

Knows Examples of conversations, their image a path or an array. Does not know which ones are worth keeping.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from perdure.types import Example


def to_state(examples: Iterable[Example]) -> list[dict[str, Any]]:
    """One entry an example: id, conversation, and the image's path or pixels."""
    return [{"id": e.id, "conversations": _plain(e), "image": _stored(e.inputs.get("image"))} for e in examples]


def from_state(state: Iterable[Mapping[str, Any]]) -> list[Example]:
    """What `to_state` was given."""
    examples = []
    for entry in state:
        inputs: dict[str, Any] = {"conversations": entry["conversations"]}
        if entry["image"] is not None:
            inputs["image"] = _restored(entry["image"])
        target = entry["conversations"][-1]["value"]
        examples.append(Example(id=entry["id"], inputs=inputs, target=target))
    return examples


def _plain(example: Example) -> list[dict[str, str]]:
    return [dict(message) for message in example.inputs["conversations"]]


def _stored(image: Any) -> Any:
    if image is None or isinstance(image, str):
        return image
    return str(image) if isinstance(image, Path) else torch.as_tensor(image).clone()


def _restored(image: Any) -> Any:
    return Path(image) if isinstance(image, str) else image.numpy()
