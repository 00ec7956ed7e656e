"""Retrieval by CLIP, adapted to each query: an image among texts, or a text among images.

Knows one CLIP, a gallery that is encoded once, and an objective on the logits ``[1, gallery]``. Does not know rewards,
files or metrics. By default the side of the query is tuned: the image tower for an image, all that is not the image
tower (logit scale included) for a text. RLCF (Zhao et al., ICLR 2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.nn.test_time.encoder_tuning import SlowStart, visual_state
from perdure.nn.test_time.episodes import Episodes
from perdure.nn.test_time.losses import Objective
from perdure.nn.test_time.prompt_tuning import Steps, Trace

if TYPE_CHECKING:
    from perdure.models.clip import Clip

Tuned = Literal["query", "gallery"]
"""Which side's tower moves."""
Modality = Literal["image", "text"]


class NamedImage(str):
    """An image among a query's candidates: a text (its id) that brings the picture along.

    `image` is whatever `perdure.images.open_image` takes; by default the text is its path.
    """

    image: Any

    def __new__(cls, name: str, image: Any = None) -> NamedImage:
        made = super().__new__(cls, name)
        made.image = name if image is None else image
        return made

    def __deepcopy__(self, memo: Any) -> NamedImage:
        return self


class QueryTuner:
    """Answers one query after another against one gallery.

    Args:
        query: what is asked with.
        gallery: normalised pixels or token ids of everything that may be found; parts of it may come one by one, and
            are kept only if the gallery's side is tuned.
        momentum: carry knowledge from query to query; see `SlowStart`.
        chunk: items encoded at a time where no gradient is needed.
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
        self.features = torch.cat(encoded)
        side = query if tune == "query" else other(query)
        state = visual_state(clip) if side == "image" else text_state(clip)
        tuned = unfreeze(clip, side)
        self.rows: Tensor | None = None
        slow = None
        if momentum is not None:
            slow = SlowStart(state, momentum=momentum, every=update_every, share=update_share)
        elif side == "text" and tune == "query":
            # A query moves the embeddings of its own tokens alone; the others' gradient is zero, and so is their part
            # in the answer. So these few rows stand in for the table, most of the text tower's weights.
            state = {n: t for n, t in state.items() if n != TABLE}
            self.rows = torch.zeros(clip.context_length, gallery_width(clip), dtype=clip.dtype, device=clip.device)
            self.rows.requires_grad_()
            tuned = {**{n: p for n, p in tuned.items() if n != TABLE}, "rows": self.rows}
        self.episodes = Episodes(state, tuned, steps, slow=slow)

    def logits(
        self, item: Shaped[Tensor, "1 ..."], objective: Objective, *, trace: Trace | None = None
    ) -> Float[Tensor, "1 gallery"]:
        """Logits of the whole gallery for one query (pixels ``[1 3 height width]`` or ids ``[1 tokens]``)."""
        if self.query == "text":
            item = self.clip.cut(item)
        score = self._by_query(item) if self.tune == "query" else self._by_gallery(item)
        return self.episodes.run(lambda: objective(score()[None])[0], lambda: score().detach(), trace=trace)

    def _by_query(self, item: Tensor):
        where = self._own_rows(item) if self.rows is not None else None

        def score() -> Tensor:
            return self.clip.scale * self._encode(self.query, item, where) @ self.features.T

        return score

    def _by_gallery(self, item: Tensor):
        with torch.no_grad():
            fixed = self._encode(self.query, item)

        def score() -> Tensor:
            parts = [self._encode(other(self.query), part) for part in self.gallery]
            return self.clip.scale * fixed @ torch.cat(parts).T

        return score

    def _own_rows(self, ids: Int[Tensor, "1 tokens"]) -> Int[Tensor, "1 tokens"]:
        """Fill the rows with the embeddings of these tokens; where each token's row is."""
        assert self.rows is not None
        different, where = ids.unique(return_inverse=True)
        with torch.no_grad():
            self.rows.zero_()
            self.rows[: len(different)] = self.clip.token_embeddings(different)
        return where

    def _encode(self, modality: Modality, item: Tensor, where: Tensor | None = None) -> Float[Tensor, "items dim"]:
        if modality == "image":
            return F.normalize(self.clip.image_features(item), dim=-1)
        if where is None:
            return F.normalize(self.clip.text_features(item), dim=-1)
        assert self.rows is not None
        return F.normalize(self.clip.text_features(item, embeddings=self.rows[where]), dim=-1)


TABLE = "text_model.embeddings.token_embedding.weight"


def other(modality: Modality) -> Modality:
    """The side that a query searches in."""
    return "text" if modality == "image" else "image"


def gallery_width(clip: Clip) -> int:
    """Width of the text tower."""
    return clip.text_config.hidden_size


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
