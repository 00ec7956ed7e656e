"""ZERO: the sure views of an image vote for their first answers, at temperature zero; no state, no gradient.

Farina et al., Frustratingly Easy Test-Time Adaptation of Vision-Language Models, NeurIPS 2024. With a reward model the
policy chooses the views and breaks ties, and the reward model votes.

Needs: 2 GB GPU memory for ViT-B/16.

Knows votes and ties. Features are in `perdure.families.test_time.frozen`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from perdure.errors import RecipeError
from perdure.families.clip import clipscore
from perdure.families.test_time import evidence, frozen, settings
from perdure.families.test_time.losses import entropy, take_views
from perdure.models.clip import Clip
from perdure.types import Batch, Query

TieBreak = Literal["greedy", "greedy_published"]
MORE = 1e-9
"""What puts the winner of a tie before the others, in votes."""


@dataclass(frozen=True, kw_only=True)
class Config(settings.FewViews, settings.Prompted):
    """Settings of ZERO."""

    views: Annotated[int, Field(ge=1)] = 64
    """Views of an image, the plain one included."""
    selection: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the views that votes: those of least entropy. Where it holds no view, the surest view decides."""
    vote_temperature: Annotated[float, Field(ge=0)] = 0.0
    """0: a view votes for its first answer. Published numbers were made in float16, whose epsilon, 2^-10 of cosines,
    makes soft votes: 0.0009765625."""
    tie_break: TieBreak = "greedy"
    """The surest of the other views whose answer is among the tied decides; where none does, its highest tied logit.
    `greedy_published`: there a fault of the published code masks other classes than the tied ones."""
    scores: Literal["votes", "marginal"] = "votes"
    """What records hold: the logarithm of the share of votes, or of the mean probability over the sure views, which is
    finite for every class."""

    def faults(self):
        if self.tie_break == "greedy_published" and evidence.share_of(self.views, self.selection) >= self.views:
            yield "tie_break", "the published code fails on ties where no view is left; set `greedy`"


class Zero(frozen.OnFeatures):
    """Stateless: no image knows of another."""

    Config = Config
    answers = frozenset({"classify"})
    not_updatable = "it learns nothing from training data"
    carries_state = False

    def __init__(self, config: Config, *, clip: Clip, reward: Clip | None = None) -> None:
        super().__init__(config, clip)
        self.reward = None if reward is None else clipscore.ClipReward([reward.requires_grad_(False)], [1.0], like=clip)
        self.encodes = ("feature",) if reward is None else ("feature", "reward")

    @torch.no_grad()
    def encode(self, batch: Batch) -> dict[str, Tensor]:
        found = super().encode(batch)
        if self.reward is not None:
            pixels = self.clip.transform.normalize(batch["views"].flatten(0, 1))
            parts = [self.reward.encode_images(part)[0] for part in pixels.split(frozen.CHUNK)]
            found["reward"] = torch.cat(parts).view(*batch["views"].shape[:2], -1)
        return found

    def encoder(self) -> dict[str, Any]:
        key = super().encoder()
        return key if self.reward is None else key | {"reward": frozen.encoder_key(self.reward.models[0], self.config)}

    def begin(self, query: Query, texts: Tensor) -> Any:
        """The reward model's class features are all that answers share."""
        if self.reward is None:
            return None
        return _Texts(frozen.mean_texts(self.reward.models[0], self.config, query.candidates))

    def answer(self, state: Any, rows: Mapping[str, Tensor], texts: Tensor) -> Tensor:
        config = self.config
        filtering = rows["feature"] @ texts.T
        voting, scale = filtering, self.clip.scale
        if self.reward is not None:
            voting, scale = rows["reward"] @ state.texts.T, self.reward.models[0].scale
        ballot = vote(
            self.clip.scale * filtering,
            voting,
            scale=float(scale),
            kept=evidence.share_of(filtering.shape[1], config.selection),
            temperature=config.vote_temperature,
            tie_break=config.tie_break,
        )
        return ballot.marginal if config.scores == "marginal" else ballot.log_share


@dataclass(frozen=True)
class _Texts:
    texts: Tensor

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class Ballot:
    """How the views of some images have voted."""

    votes: Float[Tensor, "images classes"]
    tied: Bool[Tensor, "images classes"]
    """Classes with the most votes."""
    raised: Float[Tensor, "images classes"]
    """Votes, with one more for what the tie-break chose."""
    kept: Int[Tensor, "images kept"]
    """The views that vote, the surest first."""
    decided: Bool[Tensor, " images"]
    """False where a tie was left to the last rule."""
    marginal: Float[Tensor, "images classes"]
    """Log of the mean probability over the voting views (the surest, where none votes)."""

    @property
    def predicted(self) -> Int[Tensor, " images"]:
        """The class of the most votes after the tie-break, the lowest among equals."""
        return self.raised.argmax(-1)

    @property
    def log_share(self) -> Float[Tensor, "images classes"]:
        """Log of the share of votes, -inf where there is none; the winner of a tie a little before the others."""
        first = torch.zeros_like(self.votes).scatter_(1, self.predicted[:, None], 1.0)
        if self.kept.shape[1] == 0:
            return first.log()
        return ((self.votes + MORE * first) / self.votes.sum(-1, keepdim=True)).log()


def vote(
    filtering: Float[Tensor, "images views classes"],
    voting: Float[Tensor, "images views classes"],
    *,
    scale: float,
    kept: int,
    temperature: float = 0.0,
    tie_break: TieBreak = "greedy",
) -> Ballot:
    """Votes of the `kept` views of least entropy, and who wins a tie.

    By hand, three views with first answers 0, 1, 1 by rising entropy, two kept: one vote each for 0 and 1; the third
    view says 1, and 1 wins.

    Args:
        filtering: logits by which views are chosen and ties broken.
        voting: cosines that vote.
        scale: of the cosines, where probabilities are made of them.
        temperature: of the votes; 0 counts first answers.
    """
    order = entropy(filtering).argsort(dim=1, stable=True)
    chosen, rest = order[:, :kept], take_views(filtering, order[:, kept:])
    ballots = take_views(voting, chosen)
    if temperature == 0:
        votes = torch.zeros_like(filtering[:, 0]).scatter_add_(
            1, ballots.argmax(-1), torch.ones_like(chosen, dtype=filtering.dtype)
        )
    else:
        votes = (ballots / temperature).softmax(-1).sum(1)
    tied = votes == votes.amax(-1, keepdim=True)
    shares = (scale * (ballots if kept else take_views(voting, order[:, :1]))).log_softmax(-1)
    marginal = shares.logsumexp(1) - torch.tensor(float(max(kept, 1))).log().to(shares)
    winner, decided = _break_ties(tied, rest, marginal, tie_break)
    more = torch.zeros_like(votes).scatter_(1, winner[:, None], 1.0) * (tied.sum(-1, keepdim=True) > 1)
    return Ballot(votes, tied, votes + more, chosen, decided, marginal)


def _break_ties(
    tied: Tensor, rest: Float[Tensor, "images others classes"], marginal: Tensor, rule: TieBreak
) -> tuple[Int[Tensor, " images"], Bool[Tensor, " images"]]:
    """The class that gets one more vote, and whether another view's answer is among the tied."""
    alone = tied.sum(-1) == 1
    if rest.shape[1] == 0:
        if rule == "greedy_published" and not bool(alone.all()):
            raise RecipeError("a tie, and no view is left to break it", where="method.tie_break", expected="greedy")
        return marginal.masked_fill(~tied, -torch.inf).argmax(-1), alone
    answers = rest.argmax(-1)
    among = tied.gather(1, answers)
    decided = among.any(1)
    first = answers.gather(1, among.int().argmax(1, keepdim=True))[:, 0]
    masked = tied.flip(1) if rule == "greedy_published" else ~tied  # published: bits of class numbers are turned
    last = rest[:, 0].masked_fill(masked, -torch.inf).argmax(-1)
    return torch.where(decided, first, last), decided | alone
