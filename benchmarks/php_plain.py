"""PHP written down plainly: the same numbers without what perdure saves.

Within `plain()`, class texts are encoded at all 77 positions in every step and for every test video, the spectrogram of
a repeated second is computed in full, adapters align tokens in the written order, the audio adapters after the MLP
(which have no effect) are computed, generators compute all tokens of all layers for every sample, and the towers are
built anew for every old task that is tested. Knows where perdure does these things; changes nothing outside `plain()`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families.audio_visual import adapter, learning, readout
from perdure.families.audio_visual.system import System
from perdure.families.audio_visual.towers import CrossAdapters, Insertions
from perdure.methods.php import Php
from perdure.methods.php.generator import Generator
from perdure.models.clap import Clap, mel
from perdure.models.clip import Clip

TOKENS = 77


@contextmanager
def plain() -> Iterator[None]:
    """All of the plain ways at once."""
    with ExitStack() as stack:
        for where, name, new in (
            (mel, "tiled_power", full_power),
            (adapter, "align", align_as_written),
            (Generator, "forward", all_tokens),
            (Clip, "cut", lambda self, ids: ids),
            (Clap, "encode_texts", padded_texts),
            (System, "texts", texts_anew),
            (learning, "predict_with", predict_anew),
            (learning, "forward", forward_anew(learning.forward)),
            (Php, "insert", with_dead_adapters(Php.insert)),
        ):
            stack.enter_context(mock.patch.object(where, name, new))
        yield


def full_power(wave: Tensor, length: int, *, window: int, hop: int) -> Tensor:
    half = window // 2
    padded = F.pad(mel.repeat_to(wave, length)[:, None], (half, half), mode="reflect")[:, 0]
    return mel._power(padded, window, hop)


def align_as_written(other: Tensor, tokens: nn.Linear, dim: nn.Linear) -> Tensor:
    return dim(tokens(other.transpose(1, 2)).transpose(1, 2))


def all_tokens(self: Generator, inputs: Any, codebook: Tensor) -> list[Tensor]:
    """Visual and audio samples one after the other, every token of every layer."""
    found = []
    for tokens in inputs:
        hidden = torch.cat([tokens, codebook.expand(len(tokens), -1, -1)], dim=1)
        size, rows = hidden.shape[:2], hidden.flatten(0, 1)
        for layer in self.layers:
            rows = layer(rows, [layer.project(rows).unflatten(0, size)])  # type: ignore[operator,union-attr]
        found.append(self.out(rows.unflatten(0, size)[:, 0]))
    return found


@torch.no_grad()
def padded_texts(self: Clap, texts: Any, *, batch_size: int = 128) -> Tensor:
    encoded = self.tokenizer(  # type: ignore[misc]
        list(texts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    output = self.model.text_model(encoded["input_ids"], attention_mask=encoded["attention_mask"])
    return self.model.text_projection(output.pooler_output)


def texts_anew(self: System, problem: Any) -> Any:
    return readout.texts_of(problem, self.clip, self.clap, self.readout)


def forward_anew(ours: Any) -> Any:
    """Every pass reads and encodes the class texts."""

    def forward(system: Any, problem: Any, parts: Any, insert: Any, batch: Any, **more: Any) -> Any:
        more |= {"texts": system.texts(problem), "seen_classes": None}
        return ours(system, problem, parts, insert, batch, **more)

    return forward


def predict_anew(system: Any, problem: Any, parts: Any, insert: Any) -> Any:
    """Towers of its own for each task, texts anew for each batch."""
    own = System(
        clip=copy.deepcopy(system.clip), clap=copy.deepcopy(system.clap), readout=system.readout, modes=system.modes
    )

    def predict(batch: Any) -> Any:
        return readout.answer(problem, learning.forward(own, problem, parts, insert, batch, texts=None))

    return predict


def with_dead_adapters(ours: Any) -> Any:
    """The audio adapter of the first place once more after the MLP; its result goes nowhere."""

    def insert(self: Php, parts: Any, *inputs: Any) -> Insertions:
        made = ours(self, parts, *inputs)
        crossed = {
            block: CrossAdapters(
                audio=trio.audio, visual=trio.visual, visual_second=_Both(trio.visual_second, trio.audio)
            )
            for block, trio in made.adapters.items()
        }
        return Insertions(prefix=made.prefix, audio_prompt=made.audio_prompt, adapters=crossed)

    return insert


class _Both(nn.Module):
    def __init__(self, visual: nn.Module, dead: nn.Module) -> None:
        super().__init__()
        self.visual, self.dead = visual, dead

    def forward(self, x: Tensor, heard: Tensor) -> Tensor:
        self.dead(heard, x)
        return self.visual(x, heard)
