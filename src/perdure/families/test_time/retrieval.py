"""Retrieval by CLIP, adapted to each query: an image among texts, or a text among images.

Knows one CLIP, a gallery that is encoded once, and an objective on the logits ``[1, gallery]``. Does not know rewards,
files or metrics. By default the side of the query is tuned: the image tower for an image, all that is not the image
tower (logit scale included) for a text. RLCF (Zhao et al., ICLR 2024).

Several queries can be adapted to side by side: every query has weights of its own, stacked, and all of them go through
the tower in one call. That is worth it where a call costs more than its arithmetic: small towers, graphics cards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from perdure.families.test_time.encoder_tuning import visual_state
from perdure.families.test_time.episodes import Episodes, SlowStart
from perdure.families.test_time.losses import Objective
from perdure.families.test_time.prompt_tuning import Steps, Trace

if TYPE_CHECKING:
    from perdure.models.clip import Clip

Tuned = Literal["query", "gallery"]
"""Which side's tower moves."""
Modality = Literal["image", "text"]


class QueryTuner:
    """Answers one query after another against one gallery.

    Args:
        query: what is asked with.
        gallery: normalised pixels or token ids of everything that may be found; parts of it may come one by one, and
            are kept only if the gallery's side is tuned.
        momentum: carry knowledge from query to query; see `SlowStart`.
        chunk: items encoded at a time where no gradient is needed.
        features: of the gallery, as an earlier tuner's `features`; `gallery` may then be empty, unless it is tuned.
    """

    def __init__(
        self,
        clip: Clip,
        gallery: Shaped[Tensor, "gallery ..."] | Iterable[Tensor],
        steps: Steps,
        *,
        query: Modality,
        tune: Tuned = "query",
        momentum: float | None = None,
        update_every: int = 64,
        update_share: float = 1.0,
        chunk: int = 256,
        features: Float[Tensor, "gallery dim"] | None = None,
    ) -> None:
        self.clip, self.tune = clip, tune
        self.query: Modality = query
        parts = gallery.split(chunk) if isinstance(gallery, Tensor) else gallery
        self.gallery: list[Tensor] = []
        encoded = []
        with torch.no_grad():
            for part in parts:
                encoded.append(self._encode(other(query), part))
                self.gallery += [part] if tune == "gallery" else []
        self.features = torch.cat(encoded) if features is None else features.to(clip.device)
        side = query if tune == "query" else other(query)
        state = visual_state(clip) if side == "image" else text_state(clip)
        tuned = unfreeze(clip, side)
        self.slow = None
        if momentum is not None:
            self.slow = SlowStart(state, momentum=momentum, every=update_every, share=update_share)
        elif side == "text" and tune == "query":
            # A query moves the embeddings of its own tokens alone; the others' gradient is zero, and so is their part
            # in the answer. So these few rows stand in for the table, most of the text tower's weights.
            state = {n: t for n, t in state.items() if n != TABLE}
            tuned = {n: p for n, p in tuned.items() if n != TABLE}
        self.state, self.tuned, self.steps = state, tuned, steps
        self.own_rows = side == "text" and tune == "query" and momentum is None
        self.alone = self._alone()
        self.beside: dict[int, SideBySide] = {}

    def logits(
        self, items: Shaped[Tensor, "queries ..."], objective: Objective, *, trace: Trace | None = None
    ) -> Float[Tensor, "queries gallery"]:
        """Logits of the whole gallery for one query or several (pixels or ids), each after an episode of its own.

        Args:
            objective: of logits ``[queries, 1, gallery]``.
        """
        if self.query == "text":
            items = self.clip.cut(items)
        if not self.steps.count and self.slow is None and trace is None:
            return self.zero_shot(items)
        if len(items) == 1:
            return self.alone(items, objective, trace)
        assert self.tune == "query" and self.slow is None, "such episodes come one after another"
        if len(items) not in self.beside:
            self.beside[len(items)] = SideBySide(self, len(items))
        return self.beside[len(items)].logits(items, objective, trace)

    @torch.no_grad()
    def zero_shot(self, items: Shaped[Tensor, "queries ..."]) -> Float[Tensor, "queries gallery"]:
        """Logits of the whole gallery for queries that are not adapted to."""
        items = self.clip.cut(items) if self.query == "text" else items
        return self.clip.scale * self._encode(self.query, items) @ self.features.T

    def _alone(self):
        """A function that answers one query."""
        rows = self._rows(()) if self.own_rows else None
        tuned = self.tuned if rows is None else {**self.tuned, "rows": rows}
        episodes = Episodes(self.state, tuned, self.steps, slow=self.slow)

        def answer(item: Tensor, objective: Objective, trace: Trace | None) -> Tensor:
            where = None if rows is None else fill_rows(self.clip, rows, item[0])[None]
            fixed = None
            if self.tune == "gallery":
                with torch.no_grad():
                    fixed = self._encode(self.query, item)

            def score() -> Tensor:
                if fixed is None:
                    embeddings = None if rows is None else rows[where]
                    return self.clip.scale * self._encode(self.query, item, embeddings) @ self.features.T
                parts = [self._encode(other(self.query), part) for part in self.gallery]
                return self.clip.scale * fixed @ torch.cat(parts).T

            return episodes.run(lambda: objective(score()[None])[0], lambda: score().detach(), trace=trace)

        return answer

    def _rows(self, queries: tuple[int, ...]) -> Tensor:
        """Room for the embeddings of the tokens of each query."""
        shape = (*queries, self.clip.context_length, self.clip.text_config.hidden_size)
        return torch.zeros(shape, dtype=self.clip.dtype, device=self.clip.device).requires_grad_()

    def _encode(self, modality: Modality, item: Tensor, embeddings: Tensor | None = None) -> Float[Tensor, "items dim"]:
        if modality == "image":
            return F.normalize(self.clip.image_features(item), dim=-1)
        return F.normalize(self.clip.text_features(item, embeddings=embeddings), dim=-1)


class SideBySide:
    """Episodes of several queries in one: all that is tuned is stacked, a query a slice.

    The optimizer works number by number, so that a slice moves as it would alone.
    """

    def __init__(self, tuner: QueryTuner, queries: int) -> None:
        self.tuner, self.queries = tuner, queries
        self.rows = tuner._rows((queries,)) if tuner.own_rows else None
        self.stacked = {n: t.detach().expand(queries, *t.shape).clone() for n, t in tuner.state.items()}
        for name in tuner.tuned:
            self.stacked[name].requires_grad_()
        tuned = {n: self.stacked[n] for n in tuner.tuned}
        self.episodes = Episodes(
            self.stacked, tuned if self.rows is None else {**tuned, "rows": self.rows}, tuner.steps, stacked=True
        )
        self.score = _Score(tuner)

    def logits(
        self, items: Shaped[Tensor, "queries ..."], objective: Objective, trace: Trace | None
    ) -> Float[Tensor, "queries gallery"]:
        """As `QueryTuner.logits`."""
        where = items
        if self.rows is not None:
            where = torch.stack([fill_rows(self.tuner.clip, rows, ids) for rows, ids in zip(self.rows, items)])

        def one(state: dict[str, Tensor], item: Tensor, place: Tensor, rows: Tensor | None) -> Tensor:
            embeddings = None if rows is None else rows[place][None]
            named = {f"clip.model.{n}": t for n, t in state.items()}
            return functional_call(self.score, named, (item[None], embeddings))[0]

        each = torch.vmap(one, in_dims=(0, 0, 0, None if self.rows is None else 0))

        def score() -> Tensor:
            # This backend is written in operations that can be stacked; the others would run query by query.
            with sdpa_kernel(SDPBackend.MATH):
                return each(self.stacked, items, where, self.rows)

        return self.episodes.run(lambda: objective(score()[:, None]), lambda: score().detach(), trace=trace)


class _Score(nn.Module):
    """Logits of the gallery as a module's call, so that weights can be handed in."""

    def __init__(self, tuner: QueryTuner) -> None:
        super().__init__()
        self.clip, self.features = tuner.clip, tuner.features
        self.query: Modality = tuner.query
        self.encode = tuner._encode

    def forward(self, item: Tensor, embeddings: Tensor | None) -> Float[Tensor, "1 gallery"]:
        return self.clip.scale * self.encode(self.query, item, embeddings) @ self.features.T


TABLE = "text_model.embeddings.token_embedding.weight"


def other(modality: Modality) -> Modality:
    """The side that a query searches in."""
    return "text" if modality == "image" else "image"


def fill_rows(clip: Clip, rows: Float[Tensor, "context width"], ids: Int[Tensor, " tokens"]) -> Int[Tensor, " tokens"]:
    """Fill the rows with the embeddings of these tokens; where each token's row is."""
    different, where = ids.unique(return_inverse=True)
    with torch.no_grad():
        rows.zero_()
        rows[: len(different)] = clip.token_embeddings(different)
    return where


def text_state(clip: Clip) -> dict[str, Tensor]:
    """All parameters that are not of the image tower, by name; logit_scale is among them."""
    return dict(clip.text_parameters())


def unfreeze(clip: Clip, side: Modality) -> dict[str, nn.Parameter]:
    """The parameters of one side; only they get gradients from now on."""
    clip.requires_grad_(False)
    chosen: Mapping[str, nn.Parameter] = clip.visual_parameters() if side == "image" else clip.text_parameters()
    for parameter in chosen.values():
        parameter.requires_grad_()
    return dict(chosen)
