"""A pool of prompts with keys: each sample takes those whose keys are nearest (L2P, Wang et al. 2022).

Knows queries, keys, votes and how chosen prompts become prefixes. Does not know towers or tasks.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from perdure.layers.prompts import Layout, lay_out, majority, similarities

Vote = Literal["frame", "video", "batch"]
Summary = Literal["mean", "max", "mean_max", "cls"]


class PromptPool(nn.Module):
    """`prompt` ``[layers 2 pool length dim]`` (2: keys, values) and `key` ``[pool dim]``, uniform in -1..1."""

    def __init__(self, *, layers: int, pool: int, length: int, dim: int) -> None:
        super().__init__()
        self.prompt = nn.Parameter(torch.empty(layers, 2, pool, length, dim).uniform_(-1, 1))
        self.key = nn.Parameter(torch.empty(pool, dim).uniform_(-1, 1))

    def choose(
        self, tokens: Float[Tensor, "frames tokens dim"], *, top: int, vote: Vote, segments: int, summary: Summary
    ) -> tuple[Int[Tensor, "frames top"], Float[Tensor, "frames pool"]]:
        """Indices of the prompts of each frame, and the similarities to all keys.

        Args:
            top: prompts a frame.
            vote: each frame for itself; or the most frequent choices among a video's `segments` frames, or the batch's.
        """
        similarity = similarities(summarize(tokens, summary), self.key)
        chosen = similarity.topk(top, dim=1).indices
        if vote == "frame":
            return chosen, similarity
        span = segments if vote == "video" else len(tokens)
        groups = chosen.split(span)
        return torch.cat([majority(g, top).expand(len(g), -1) for g in groups]), similarity

    def prefixes(
        self, chosen: Int[Tensor, "frames top"], *, layout: Layout
    ) -> Float[Tensor, "layers frames 2 length dim"]:
        """The chosen prompts one after the other, as keys (0) and values (1) of each frame."""
        return lay_out(self.prompt[:, :, chosen].flatten(3, 4), layout)


def summarize(tokens: Float[Tensor, "frames tokens dim"], how: Summary) -> Float[Tensor, "frames dim"]:
    """One query a frame: mean, maximum or twice the former plus the latter over tokens, or the class token."""
    match how:
        case "mean":
            return tokens.mean(1)
        case "max":
            return tokens.amax(1)
        case "mean_max":
            return tokens.amax(1) + 2 * tokens.mean(1)
        case "cls":
            return tokens[:, 0]
