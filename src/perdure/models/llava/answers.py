"""Greedy answers of many questions at a time, through transformers' `generate`.

Knows token ids, keys and values. Does not know texts, images' files or tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from perdure.models.cache_names import cache_name

ROOM = 64
"""Tokens by which the buffers of keys and values grow."""


class PromptCache:
    """KV cache of the common prompt prefix, made once for a model's present weights."""

    def __init__(self, model: Any, ids: Sequence[int]) -> None:
        self.model, self.ids = model, torch.tensor(ids)
        self._layers: list[tuple[Tensor, Tensor]] = []

    def first(
        self, ids: Int[Tensor, "rows tokens"], mask: Int[Tensor, "rows tokens"], pad: int
    ) -> tuple[Tensor, Tensor] | None:
        """Rows that are padded after the start, not before it; None if one of them begins otherwise or is no longer."""
        n, longest = len(self.ids), ids.shape[1]
        padding = longest - mask.sum(1, keepdim=True)
        if not 0 < n < longest or bool((n + padding >= longest).any()):
            return None
        start, places = self.ids.to(ids.device), torch.arange(longest, device=ids.device)
        if bool((ids.gather(1, padding + places[:n]) != start).any()):
            return None
        later = places >= n + padding
        moved = torch.where(later, ids, pad)
        moved[:, :n] = start
        return moved, (later | (places < n)).to(mask.dtype)

    def cache(self, rows: int) -> Cache:
        """A cache of so many rows that holds them."""
        if not self._layers:
            started = growing_cache()
            ids = self.ids.to(self.model.device)[None]
            self.model(input_ids=ids, use_cache=True, logits_to_keep=1, **{cache_name(self.model): started})
            self._layers = [(layer.keys, layer.values) for layer in started.layers]  # type: ignore
        made = growing_cache()
        for i, pair in enumerate(self._layers):
            keys, values = (t.expand(rows, -1, -1, -1) for t in pair)
            made.update(keys, values, i)
        return made


@torch.no_grad()
def greedy(
    model: Any,
    ids: Int[Tensor, "rows tokens"],
    mask: Int[Tensor, "rows tokens"],
    pixels: Tensor | None,
    *,
    start: PromptCache,
    pad: int,
    **settings: Any,
) -> list[list[int]]:
    """The new tokens of each question, `pad` after its end.

    Args:
        ids: questions, padded on the left; `mask` is 0 there.
        pixels: images of the questions that have one, in their order.
        start: what the questions begin with: such rows share its keys and values.
        settings: of `generate`.
    """
    cache, longest = growing_cache(), ids.shape[1]
    if (moved := start.first(ids, mask, pad)) is not None:
        (ids, mask), cache = moved, start.cache(len(ids))
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        **{cache_name(model): cache},
        **({} if pixels is None else {"pixel_values": pixels}),
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        pad_token_id=pad,
        **settings,
    )
    return out[:, longest:].tolist()


def growing_cache() -> Cache:
    """A cache whose steps copy one token, not all before it."""
    return Cache(layer_class_to_replicate=GrowingLayer)


class GrowingLayer(DynamicLayer):
    """Keys and values of a layer, as views of buffers with room for more."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._buffers: tuple[Tensor, ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **settings: Any) -> tuple[Tensor, Tensor]:
        """Append, and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if not self._buffers or self._buffers[0].shape[-2] < after:
            old = (self.keys, self.values) if before else ()
            self._buffers = tuple(_roomy(new, after + ROOM) for new in (key_states, value_states))
            for buffer, kept in zip(self._buffers, old):
                buffer[..., :before, :] = kept  # type: ignore
        for buffer, new in zip(self._buffers, (key_states, value_states)):
            buffer[..., before:after, :] = new
        self.keys, self.values = (buffer[..., :after, :] for buffer in self._buffers)
        return self.keys, self.values


def _roomy(states: Tensor, tokens: int) -> Tensor:
    rows, heads, _, width = states.shape
    return states.new_empty(rows, heads, tokens, width)
