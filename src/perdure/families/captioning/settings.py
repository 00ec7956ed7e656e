"""Settings that captioners share: how a mapper learns, and how a caption is spoken.

Knows numbers only; imports no torch, so that recipes can be checked quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class Mapper:
    """How a mapper learns from captions, and how it speaks."""

    lr: Annotated[float, Field(gt=0)] = 2e-05
    """Learning rate (AdamW), at its highest."""
    epochs: Annotated[int, Field(ge=1)] = 10
    """Passes over the captions."""
    warmup: Annotated[int, Field(ge=1)] = 5000
    """Steps over which the rate rises; then it falls to 0."""
    batch_size: Annotated[int, Field(ge=1)] = 40
    """Captions a step."""
    learn_end: bool = False
    """End each caption with a line break while learning; the published code leaves it to the language model."""
    decoding: Literal["official", "transformers", "nucleus"] = "official"
    """`official`: beam search with the scoring of transformers 4.26, as published. `transformers`: today's. `nucleus`:
    drawn from the most probable words."""
    beams: Annotated[int, Field(ge=1)] = 5
    """Captions searched side by side."""
    most_words: Annotated[int, Field(ge=1)] = 50
    """Most tokens of a caption."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.92
    """Share of the probability that `nucleus` draws from."""
