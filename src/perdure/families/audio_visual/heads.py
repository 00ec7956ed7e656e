"""Heads over the last tokens of both towers: answers to questions, masks of what sounds, adapters of features.

Knows tokens, questions as word ids, and maps. Does not know towers, tasks or losses.
Answers: Li et al. 2022 (MUSIC-AVQA); masks: Zhou et al. 2022 (AVSBench).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.families.audio_visual.adapter import attend


class FeatureAdapter(nn.Module):
    """CLIP-Adapter: ``ratio * relu(W2 relu(W1 x)) + (1 - ratio) * x``, without biases."""

    def __init__(self, dim: int, *, reduction: int = 4, ratio: float = 0.2) -> None:
        super().__init__()
        self.ratio = ratio
        self.down = nn.Linear(dim, dim // reduction, bias=False)
        self.up = nn.Linear(dim // reduction, dim, bias=False)

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        return self.ratio * F.relu(self.up(F.relu(self.down(x)))) + (1 - self.ratio) * x


class QuestionEncoder(nn.Module):
    """Word vectors, an LSTM over the words, and one vector a question."""

    def __init__(self, words: int, dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, dim)
        self.lstm = nn.LSTM(dim, dim)
        self.out = nn.Linear(2 * dim, dim)

    def forward(self, question: Int[Tensor, "videos words"]) -> Float[Tensor, "videos dim"]:
        _, (hidden, cell) = self.lstm(torch.tanh(self.words(question)).transpose(0, 1))
        return self.out(torch.tanh(torch.cat([hidden[0], cell[0]], dim=1)))


class AnswerHead(nn.Module):
    """Scores of answers to questions about a video's sound and sight.

    Args:
        visual: width of the visual tokens; `audio`: of the audio tokens.
        words: size of the questions' vocabulary; `answers`: number of answers.
        dim: width inside.
        segments: frames a video.
    """

    def __init__(
        self,
        *,
        visual: int,
        audio: int,
        words: int,
        answers: int,
        dim: int | None = None,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        dim = dim or visual
        self.question = QuestionEncoder(words, dim)
        self.audio_in = nn.Sequential(nn.Linear(audio, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.visual_in = nn.Sequential(nn.Linear(visual, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.grounding = nn.Linear(visual + dim, dim)
        self.attend_audio = Attended(dim, heads=heads, dropout=dropout)
        self.attend_visual = Attended(dim, heads=heads, dropout=dropout)
        self.fusion = nn.Linear(2 * dim, dim)
        self.answer = nn.Linear(dim, answers)

    def forward(
        self,
        visual: Float[Tensor, "frames tokens width"],
        audio: Float[Tensor, "frames patches wide"],
        question: Int[Tensor, "videos words"],
    ) -> Float[Tensor, "videos answers"]:
        videos = len(question)
        heard = F.normalize(self.audio_in(audio), dim=2)
        seen = F.normalize(self.visual_in(visual), dim=2)
        grounded = attend(seen, heard)
        seen = self.grounding(torch.tanh(torch.cat([visual, grounded], dim=2)))
        heard, seen = (x.reshape(videos, -1, x.shape[2]) for x in (heard, seen))
        asked = self.question(question)
        fused = [self.attend_audio(asked, heard) + heard.mean(1), self.attend_visual(asked, seen) + seen.mean(1)]
        return self.answer(torch.tanh(self.fusion(torch.tanh(torch.cat(fused, dim=1))) * asked))


class Attended(nn.Module):
    """What a question attends to among tokens, refined by an MLP."""

    def __init__(self, dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.up, self.down = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm, self.drop = nn.LayerNorm(dim), nn.Dropout(dropout)

    def forward(self, query: Float[Tensor, "videos dim"], tokens: Float[Tensor, "videos tokens dim"]) -> Tensor:
        found = self.attention(query[:, None], tokens, tokens, need_weights=False)[0][:, 0]
        return self.norm(found + self.drop(self.down(self.drop(F.relu(self.up(found))))))


class SegmentHead(nn.Module):
    """Mask logits of what sounds, at `2 ** len(widths)` times the patch grid.

    Args:
        visual: width of the visual tokens; `audio`: of the audio tokens.
        dim: channels of the map and of the audio query.
        widths: channels after each doubling of the map's sides.
    """

    def __init__(
        self,
        *,
        visual: int,
        audio: int,
        dim: int = 512,
        heads: int = 8,
        first: int = 384,
        widths: tuple[int, ...] = (192, 96, 64, 64, 64),
    ) -> None:
        super().__init__()
        self.project = nn.Conv2d(visual, first, 1)
        self.up = nn.ModuleList(_up_block(a, b) for a, b in zip((first, *widths), widths))
        self.adapt = nn.Sequential(nn.Conv2d(widths[-1], dim, 3, padding=1), nn.BatchNorm2d(dim), nn.ReLU())
        self.audio = nn.Linear(audio, dim)
        self.query, self.key_value = nn.Linear(visual, dim), nn.Linear(dim, 2 * dim)
        self.join, self.mask = nn.Linear(dim, dim), nn.Conv2d(dim, 1, 1)
        self.heads = heads

    def forward(
        self, visual: Float[Tensor, "frames tokens width"], audio: Float[Tensor, "frames patches wide"]
    ) -> Float[Tensor, "frames height width"]:
        side = round((visual.shape[1] - 1) ** 0.5)
        grid = self.project(visual[:, 1:].transpose(1, 2).unflatten(2, (side, side)))
        for block in self.up:
            grid = block(F.interpolate(grid, scale_factor=2, mode="bilinear", align_corners=False))
        features = self.adapt(grid)
        sounding = self._sounding(visual[:, 0], audio)
        similarity = torch.einsum("fdhw,fd->fhw", features, sounding)
        return self.mask(features * similarity[:, None])[:, 0]

    def _sounding(self, cls: Tensor, audio: Tensor) -> Float[Tensor, "frames dim"]:
        """The class token's view of the audio tokens."""
        key, value = self.key_value(self.audio(audio)).chunk(2, dim=2)
        query = self.query(cls)[:, None]
        parts = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        return self.join(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))[:, 0]


def _up_block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
