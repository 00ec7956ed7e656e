"""Captions as token ids of a language model, and back.

Knows start, end and padding, and counts captions that had to be cut. Does not know the model's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


class Words:
    """Ids ``[start, words...]`` of captions; nothing marks the end while learning, a line break ends a generated one.

    Args:
        encoder: a Hugging Face tokenizer, or anything that has ``encode(text) -> ids`` (without special tokens) and
            ``decode(ids) -> text`` (special tokens left out).
    """

    def __init__(self, encoder: Any, *, start: int, end: int, pad: int) -> None:
        self.encoder, self.start, self.end, self.pad = encoder, start, end, pad
        self.cut_captions = 0
        """How many over-long captions have been cut so far."""

    @classmethod
    def of(cls, encoder: Any, llm: Any) -> Words:
        """The words of a tokenizer and its model; a line break is the end where the vocabulary has one."""
        config = llm.config
        line_break = encoder.encode("\n", add_special_tokens=False)
        end = line_break[-1] if line_break else config.eos_token_id
        pad = config.pad_token_id if config.pad_token_id is not None else config.eos_token_id
        return cls(_HuggingFace(encoder), start=config.bos_token_id, end=end, pad=pad)

    def ids(self, texts: Sequence[str], *, most: int | None = None, ended: bool = False) -> list[list[int]]:
        """Ids of each text, start token first, cut to `most`; `ended` appends the end token."""
        found = []
        for text in texts:
            row = [self.start, *self.encoder.encode(text), *([self.end] if ended else [])]
            if most is not None and len(row) > most:
                self.cut_captions += 1
                row = row[:most]
            found.append(row)
        return found

    def batch(
        self, texts: Sequence[str], *, most: int | None = None, device: torch.device | None = None
    ) -> tuple[Int[Tensor, "captions words"], Int[Tensor, "captions words"]]:
        """Ids of texts, padded on the right, and their mask."""
        ids, mask = padded(self.ids(texts, most=most), pad=self.pad)
        return ids.to(device), mask.to(device)

    def padded(self, rows: Sequence[Sequence[int]], *, length: int):
        """Ids and mask; while learning, padding is 0 and never counts."""
        return padded(rows, pad=0, length=length)

    def usual_length(self, rows: Sequence[Sequence[int]]) -> int:
        """See `usual_length`."""
        return usual_length(rows)

    def decode(self, found: Sequence[Sequence[int]]) -> list[str]:
        """Texts without special tokens."""
        return [self.encoder.decode([i for i in row if i not in (self.start, self.end, self.pad)]) for row in found]

    def until_end(self, row: Sequence[int]) -> list[int]:
        """The ids before the first end token or padding."""
        kept = []
        for word in row:
            if word in (self.end, self.pad):
                break
            kept.append(word)
        return kept


def padded(
    rows: Sequence[Sequence[int]], *, pad: int, length: int | None = None
) -> tuple[Int[Tensor, "captions words"], Int[Tensor, "captions words"]]:
    """Ids padded on the right, and a mask that is 1 on real ones; rows are cut to `length` if it is given."""
    length = max(map(len, rows), default=0) if length is None else length
    ids = torch.full((len(rows), length), pad)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        kept = list(row[:length])
        ids[i, : len(kept)] = torch.tensor(kept)
        mask[i, : len(kept)] = 1
    return ids, mask


def usual_length(rows: Sequence[Sequence[int]]) -> int:
    """Length that captions are padded or cut to: mean plus ten standard deviations, at most the longest."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.float64)
    longest = int(lengths.max())
    return longest if len(rows) < 2 else min(int(lengths.mean() + 10 * lengths.std()), longest)


class _HuggingFace:
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)
