"""Learning one task of conversations: batches, parameter groups, schedule.

Knows a language model, its low-rank updates and `Tuning`. Does not know what a method adds to the loss of answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from perdure.families.instruction.sampler import modality_grouped_order
from perdure.families.instruction.settings import Tuning
from perdure.loading import ExampleBatches
from perdure.models.language_model import LanguageModel, shows
from perdure.models.llava.conversation import word_count
from perdure.runtime import Runtime
from perdure.runtime.sharding import place
from perdure.training import Fit, Group, fit
from perdure.types import Batch, Examples

Loss = Callable[[Batch], Tensor | Mapping[str, Tensor]]


def tune(
    llm: LanguageModel,
    parameters: Mapping[str, Tensor],
    examples: Examples,
    loss: Loss,
    tuning: Tuning,
    *,
    runtime: Runtime,
    stage: str = "tune",
    keep: Mapping[str, Any] | None = None,
) -> list[float]:
    """Minimize `loss` over `parameters` and the projector; the loss of every step."""
    batches = conversation_batches(llm, examples, tuning, runtime=runtime, stage=stage)
    groups = [Group(parameters=parameters), Group(parameters=llm.projector_parameters(), lr=tuning.projector_lr)]
    place(llm, llm.blocks, runtime=runtime)
    with training_mode(llm, tuning):
        return fit(
            loss,
            [g for g in groups if g.parameters],
            batches,
            fit_settings(tuning, steps=tuning.epochs * len(batches)),
            runtime=runtime,
            stage=stage,
            keep=keep,
        )


def fit_settings(tuning: Tuning, *, steps: int) -> Fit:
    """AdamW with a linear rise and a cosine fall over all `steps`."""
    return Fit(
        lr=tuning.lr,
        epochs=tuning.epochs,
        optimizer="adamw",
        weight_decay=tuning.weight_decay,
        schedule="cosine_warmup",
        warmup_steps=math.ceil(tuning.warmup * steps),
        clip_norm=tuning.clip_norm,
        accumulate=tuning.accumulate,
    )


class training_mode:
    """Context: dropout on, projector trained, activations recomputed if asked for; all undone at the end."""

    def __init__(self, llm: LanguageModel, tuning: Tuning) -> None:
        self.llm, self.tuning = llm, tuning

    def __enter__(self) -> None:
        self.llm.language_model.train()
        self.llm.projector.requires_grad_(self.llm.trains_projector)
        self.llm.checkpoint_activations(self.tuning.gradient_checkpointing)

    def __exit__(self, *exception: object) -> None:
        self.llm.checkpoint_activations(False)
        self.llm.projector.requires_grad_(False)
        self.llm.eval()


def conversation_batches(
    llm: LanguageModel, examples: Examples, tuning: Tuning, *, runtime: Runtime, stage: str
) -> ExampleBatches | GroupedBatches:
    """Training batches in a random order, grouped by modality and length if `tuning` says so."""

    def batches(chosen: Sequence, shuffle: bool | None) -> ExampleBatches:
        return ExampleBatches(
            chosen,
            llm.preprocess,
            batch_size=tuning.batch_size,
            runtime=runtime,
            stage=stage,
            training=True,
            shuffle=shuffle,
            collate=llm.collate,
        )

    if not tuning.group_by_length:
        return batches(examples, None)
    return GroupedBatches(
        lambda order: batches(examples.select(order), False), _lengths(examples), tuning, runtime, stage
    )


class GroupedBatches:
    """Batches whose order in each epoch is `modality_grouped_order`."""

    def __init__(
        self,
        batches: Callable[[Sequence[int]], ExampleBatches],
        lengths: Sequence[int],
        tuning: Tuning,
        runtime: Runtime,
        stage: str,
    ) -> None:
        self._batches, self._lengths, self._size = batches, lengths, tuning.batch_size
        self._runtime, self._stage = runtime, stage

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / self._size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Batch | None, float]]:
        drawn = iter(range(3))

        def draw(n: int) -> Sequence[int]:
            return self._runtime.permutation(n, self._stage, epoch, next(drawn)).tolist()

        # whole batches are made, so that the number of processes changes none of them
        order = modality_grouped_order(self._lengths, draw, batch_size=self._size, processes=1)
        return self._batches(order).epoch(epoch, start)


def _lengths(examples: Examples) -> list[int]:
    found = []
    for example in examples:
        has_image = shows(example.inputs)
        found.append(word_count(example.inputs["conversations"], has_image=has_image))
    return found


def copies(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of parameters at this moment."""
    return {name: p.detach().clone() for name, p in parameters.items()}
