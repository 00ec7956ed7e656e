"""Beam search over captions of several images at once, with the scoring of transformers 4.26.

Knows next-word logits as a function, and a rule of ending. Does not know models: `advance` keeps the cache.

The published captions were made by that version, whose rule differs from today's where captions end early: an ended
caption counts if it is among the best `beams` candidates of its step, its score is its log-probability over its length
(start token included, end token not), and an image is done when `beams` captions have ended of which the worst is at
least as good as the best candidate would be at the present length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

Advance = Callable[[Int[Tensor, " rows"], Int[Tensor, " rows"] | None], Float[Tensor, "rows words"]]
"""(last words, rows that the cache keeps, in order; None: as they are) -> logits of the next words."""


@dataclass(frozen=True, kw_only=True)
class Beam:
    """How captions are searched."""

    beams: int
    captions: int
    """How many of the best are given back; at most `beams`."""
    most: int
    """Most words after the start token."""
    start: int
    end: int
    length_penalty: float = 1.0


@torch.no_grad()
def beam_search(advance: Advance, images: int, settings: Beam, *, device: torch.device) -> list[list[list[int]]]:
    """For each image its best captions, the best first: ids from the start token on, without the end token.

    Args:
        advance: its rows are ``images * beams``, the beams of an image side by side.
    """
    beams = settings.beams
    assert 1 <= settings.captions <= beams
    ids = torch.full((images * beams, 1), settings.start, device=device)
    total: Tensor | None = None
    ended = [_Ended(settings) for _ in range(images)]
    first_row = torch.arange(images, device=device)[:, None] * beams
    rows = None
    for _ in range(settings.most):
        logits = advance(ids[:, -1], rows)
        # Sums of log-probabilities need more than half precision.
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1).view(images, beams, -1)
        if total is None:  # all beams are alike at first; only one of them may go on
            total = torch.full((images, beams), -1e9, dtype=log_p.dtype, device=device)
            total[:, 0] = 0
        words = log_p.shape[-1]
        best, flat = (log_p + total[..., None]).flatten(1).topk(2 * beams, dim=1)
        beam, word = flat // words, flat % words
        _note_ends(ended, ids, best, beam, word, settings)
        for_going_on = (word == settings.end).int().argsort(dim=1, stable=True)[:, :beams]
        total = best.gather(1, for_going_on)
        rows = (first_row + beam.gather(1, for_going_on)).flatten()
        ids = torch.cat([ids[rows], word.gather(1, for_going_on).view(-1, 1)], dim=1)
        if all(one.done for one in ended):
            break
    if total is not None:
        for one, sums, running in zip(ended, total.tolist(), ids.view(images, beams, -1).tolist()):
            if not one.done:
                for value, caption in zip(sums, running):
                    one.add(caption, value)
    return [one.best(settings.captions) for one in ended]


def _note_ends(ended: list[_Ended], ids: Tensor, best: Tensor, beam: Tensor, word: Tensor, settings: Beam) -> None:
    """Keep the captions that end with this step, and see which images are done."""
    beams, length = settings.beams, ids.shape[1]
    ends = (word[:, :beams] == settings.end).tolist()
    if not any(map(any, ends)) and all(len(one.found) < beams for one in ended):
        return
    sums, came_from, so_far = best.tolist(), beam.tolist(), ids.view(len(ended), beams, -1)
    for image, one in enumerate(ended):
        if one.done:
            continue
        for rank, ends_here in enumerate(ends[image]):
            if ends_here:
                one.add(so_far[image, came_from[image][rank]].tolist(), sums[image][rank])
        one.done = one.is_done(max(sums[image]), length)


@dataclass
class _Ended:
    """The best ended captions of one image."""

    settings: Beam
    found: list[tuple[float, list[int]]] = field(default_factory=list)
    worst: float = 1e9
    done: bool = False

    def add(self, caption: list[int], total: float) -> None:
        score = total / len(caption) ** self.settings.length_penalty
        if len(self.found) >= self.settings.beams and score <= self.worst:
            return
        self.found.append((score, caption))
        if len(self.found) > self.settings.beams:
            self.found.remove(min(self.found, key=lambda entry: entry[0]))
            self.worst = min(entry[0] for entry in self.found)
        else:
            self.worst = min(score, self.worst)

    def is_done(self, best_total: float, length: int) -> bool:
        if len(self.found) < self.settings.beams:
            return False
        return self.worst >= best_total / length**self.settings.length_penalty

    def best(self, count: int) -> list[list[int]]:
        ordered = sorted(self.found, key=lambda entry: entry[0])
        return [caption for _, caption in reversed(ordered[-count:])]
