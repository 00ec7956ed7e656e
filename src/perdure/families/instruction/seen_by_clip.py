"""Questions as a CLIP sees them, beside what a language model reads: for methods that choose among tasks by them.

Knows examples of instruction tasks, a CLIP and batches. Does not know how tasks are chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from perdure import training
from perdure.loading import ExampleBatches
from perdure.models.clip import Clip
from perdure.models.language_model import LanguageModel, shows, still_of
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Examples

SEEN = ("route_ids", "route_image", "has_image")
"""Entries of a batch that tell how CLIP sees its questions."""


def seen(clip: Clip, example: Example, training: bool) -> Batch:
    """The question's text, cut at the tower's length, and its first image or its video's middle frame, or zeros."""
    image, size = still_of(example.inputs), clip.transform.size
    blank = torch.zeros(3, size, size, dtype=torch.uint8)
    return {
        "route_ids": clip.tokenize([question_of(example, training)], truncate="keep-eot")[0],
        "route_image": blank if image is None else clip.transform.pixels(image),
    }


def collate(llm: LanguageModel, items: Sequence[Mapping[str, Any]]) -> Batch:
    """The language model's batch of items that also hold what `seen` gives."""
    ours = ("route_ids", "route_image")
    batch = llm.collate([{n: v for n, v in item.items() if n not in ours} for item in items])
    return {**batch, **{name: torch.stack([item[name] for item in items]) for name in ours}}


def features(
    clip: Clip, examples: Examples, encode: Callable[[Batch], dict[str, Tensor]], *, runtime: Runtime, stage: str
) -> dict[str, Tensor]:
    """What `encode` gives of all training questions, and whether each ``has_image``; one pass, a stage of its own."""

    def item(example: Example, _training: bool) -> Batch:
        return {**seen(clip, example, True), "has_image": shows(example.inputs)}

    batches = ExampleBatches(examples, item, batch_size=64, runtime=runtime, stage=stage, training=False)
    found = training.features(
        lambda batch: {**encode(batch), "has_image": batch["has_image"]}, batches, runtime=runtime
    )
    return {**found, "has_image": found["has_image"].bool()}


def question_of(example: Example, training: bool) -> str:
    """The first question without the image's placeholder."""
    inputs = example.inputs
    text = (
        next((t["value"] for t in inputs["conversations"] if t["from"] == "human"), "") if training else inputs["text"]
    )
    return str(text).replace("<image>", "").replace("<video>", "").strip()
