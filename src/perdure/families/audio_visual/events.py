"""Scores of events: frames and seconds of sound against class names, in the joint spaces of CLIP and CLAP.

Knows learned context tokens in class prompts, the two texts of a class, and the sum of the two modalities. Does not
know towers' insides or tasks. Events of AVE (Tian et al. 2018) and LLP (Tian et al. 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from perdure.models.clap import Clap
    from perdure.models.clip import Clip

ClassPosition = Literal["end", "middle", "front"]


class Context(nn.Module):
    """`tokens` learned vectors before the class name, shared by all classes."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(tokens, width) * 0.02)


class Texts(NamedTuple):
    """What is fixed in the texts of a set of classes."""

    ids: Int[Tensor, "classes tokens"]
    """Of ``X X X X <name>.``, up to the longest."""
    embeddings: Float[Tensor, "classes tokens width"]
    name_lengths: list[int]
    """Tokens of each name, without context, end and full stop."""
    heard: Float[Tensor, "classes dim"]
    """CLAP's features of ``The sounds of <name>``, of unit length."""


@torch.no_grad()
def read_texts(
    clip: Clip, clap: Clap, names: Sequence[str], *, tokens: int, template: str = "The sounds of {}"
) -> Texts:
    """Tokenize and encode all of the texts that training does not change, once."""
    clean = [name.replace("_", " ") for name in names]
    filler = " ".join(["X"] * tokens)
    ids = clip.cut(clip.tokenize([f"{filler} {name}.".strip() for name in clean])).to(clip.device)
    ends = (ids == clip.eot).int().argmax(1)
    heard = F.normalize(clap.encode_texts([template.format(name) for name in names]), dim=1)
    # From the start token: context, name, full stop, end.
    return Texts(ids, clip.token_embeddings(ids), [int(end) - tokens - 2 for end in ends], heard.float())


def prompt_embeddings(
    texts: Texts, context: Float[Tensor, "tokens width"], position: ClassPosition
) -> Float[Tensor, "classes tokens width"]:
    """Token embeddings with the context's vectors in place of the fillers, the name after, amid or before them."""
    n, fixed = len(context), texts.embeddings
    classes = len(fixed)
    begin, rest = fixed[:, :1], fixed[:, 1 + n :]
    ctx = context.to(fixed.dtype).expand(classes, -1, -1)
    if position == "end":
        return torch.cat([begin, ctx, rest], dim=1)
    half = n // 2 if position == "middle" else 0
    rows = []
    for i, length in enumerate(texts.name_lengths):
        name, after = rest[i, :length], rest[i, length:]
        rows.append(torch.cat([begin[i], ctx[i, :half], name, ctx[i, half:], after]))
    return torch.stack(rows)


def seen_texts(
    clip: Clip, texts: Texts, context: Float[Tensor, "tokens width"], position: ClassPosition = "end"
) -> Float[Tensor, "classes dim"]:
    """CLIP's features of the class prompts, not normalized, with gradients to the context."""
    return clip.text_features(texts.ids, embeddings=prompt_embeddings(texts, context, position))


def event_logits(
    seen: Float[Tensor, "frames dim"],
    heard: Float[Tensor, "frames dim"],
    *,
    seen_classes: Float[Tensor, "classes dim"],
    heard_classes: Float[Tensor, "classes dim"],
    seen_scale: Float[Tensor, ""] | float,
    heard_scale: Float[Tensor, ""] | float,
) -> tuple[Float[Tensor, "frames classes"], Float[Tensor, "frames classes"]]:
    """Scaled cosines of frames and of sounds with their class texts; the score of an event is twice their sum."""
    visual = seen_scale * F.normalize(seen, dim=1) @ F.normalize(seen_classes, dim=1).T
    audio = heard_scale * F.normalize(heard, dim=1) @ F.normalize(heard_classes, dim=1).T
    return visual, audio


def presence(
    logits: Float[Tensor, "videos segments classes"], video: Float[Tensor, "videos segments classes"]
) -> Float[Tensor, "videos segments classes"]:
    """Which events a segment holds, as 0 and 1.

    Training with the multi-hot label as target makes all true classes equally probable, so that a class counts where
    it is at least half as probable as the most probable one: in the segment (`logits`, one modality), and in the
    video (`video`, both modalities, mean over segments).
    """

    def near_best(scores: Tensor) -> Tensor:
        probability = scores.softmax(-1)
        return probability >= 0.5 * probability.amax(-1, keepdim=True)

    return (near_best(logits) & near_best(video.mean(1, keepdim=True))).to(logits.dtype)
