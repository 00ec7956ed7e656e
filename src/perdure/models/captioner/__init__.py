"""A captioner: a mapper from CLIP features to prefixes, and a frozen language model that goes on from them.

Needs: OPT-125m or GPT-2 from the hub (0.5 GB), or a folder of your own.

Knows prefixes, words, the key-value cache, and how to load both parts. Does not know CLIP, losses or what is tuned: a
loaded captioner is frozen and in evaluation mode. ClipCap (Mokady et al. 2021), CapDec (Nukrai et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel

from perdure.errors import WeightsError
from perdure.layers import weights
from perdure.models.cache_names import cache_name
from perdure.models.captioner.beam import Beam, beam_search
from perdure.models.captioner.convert import load_mapper
from perdure.models.captioner.mapper import make_mapper
from perdure.models.captioner.words import Words
from perdure.models.clip.source import place
from perdure.settings.config import Seed

__all__ = ["Captioner", "Config", "Spoken", "Words", "load"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which language model, and which mapper before it."""

    llm: str = "facebook/opt-125m"
    """Hub id or folder of an OPT or GPT-2 (or another decoder that takes `inputs_embeds`), or the name of an embedded
    one (`micro-captioner`)."""
    revision: str | None = None
    """Commit, branch or tag on the hub."""
    weights: Path | None = None
    """Mapper weights: a file or folder that perdure wrote, a `.pt` of ClipCap or CapDec, or the name of an embedded
    model; none: fresh ones."""
    mapper: Literal["transformer", "mlp"] = "transformer"
    """Kind of mapper."""
    dim: Annotated[int, Field(ge=1)] = 512
    """Width of the CLIP features (ViT-B: 512, ViT-L: 768)."""
    prefix: Annotated[int, Field(ge=1)] = 40
    """Vectors that the language model reads."""
    clip_prefix: Annotated[int, Field(ge=1)] = 40
    """Vectors that the feature becomes inside the transformer mapper."""
    layers: Annotated[int, Field(ge=1)] = 8
    """Of the transformer mapper."""
    heads: Annotated[int, Field(ge=1)] = 8
    """Of the transformer mapper."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the language model; the mapper is always float32."""
    seed: Seed | None = None
    """Seed of a fresh mapper; null: it follows the run's seed."""


def load(config: Config) -> Captioner:
    """The captioner that `config` describes, frozen, on the CPU.

    Raises:
        WeightsError: no such model, or weights of another shape.
    """
    where = place(config.llm)
    try:
        llm = AutoModelForCausalLM.from_pretrained(where, revision=config.revision, dtype=getattr(torch, config.dtype))
        encoder = AutoTokenizer.from_pretrained(where, revision=config.revision)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"cannot be loaded ({str(error).splitlines()[0]})", where=f"language model {config.llm}"
        ) from None
    embedding: Any = llm.get_input_embeddings()
    width = int(embedding.weight.shape[1])
    if config.mapper == "transformer" and width % config.heads:
        raise WeightsError(f"{config.heads} heads do not divide the width {width}", where="captioner.heads")
    with weights.seeded(config.seed):
        mapper = make_mapper(
            config.mapper,
            dim=config.dim,
            width=width,
            prefix=config.prefix,
            clip_prefix=config.clip_prefix,
            layers=config.layers,
            heads=config.heads,
        )
    if config.weights is not None:
        load_mapper(Path(place(str(config.weights))), mapper, llm)
    return Captioner(mapper, llm, Words.of(encoder, llm), dim=config.dim)


@dataclass
class Spoken:
    """What the language model keeps of prefixes that it has read."""

    keys_values: list[tuple[Tensor, Tensor]]
    """Of each layer: ``[images, heads, prefix, head_dim]``."""
    last: Float[Tensor, "images words"]
    """Logits of the first word."""

    def detached(self) -> Spoken:
        """The same without gradients."""
        return Spoken([(k.detach(), v.detach()) for k, v in self.keys_values], self.last.detach())

    def cache(self, times: int = 1) -> DynamicCache:
        """A cache for `times` continuations of each image."""
        return DynamicCache(
            [(k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)) for k, v in self.keys_values]
        )


class Captioner(nn.Module):
    """`mapper` and `llm`; the language model never gets gradients of its own."""

    def __init__(self, mapper: nn.Module, llm: PreTrainedModel, words: Words, *, dim: int) -> None:
        super().__init__()
        self.mapper, self.llm, self.words, self.dim = mapper, llm, words, dim
        self.requires_grad_(False).eval()

    @property
    def prefix(self) -> int:
        """Vectors in a prefix."""
        return self.mapper.prefix  # type: ignore[return-value]

    @property
    def room(self) -> int:
        """Most words after the prefix, start token included."""
        return self.llm.config.max_position_embeddings - self.prefix

    @property
    def device(self) -> torch.device:
        return next(self.mapper.parameters()).device

    def logits(
        self,
        prefix: Float[Tensor, "captions prefix width"],
        ids: Int[Tensor, "captions words"],
        mask: Int[Tensor, "captions words"],
    ) -> Float[Tensor, "captions words vocabulary"]:
        """Logits of each of these words, given the prefix and the words before it."""
        return self.all_logits(prefix, ids, mask)[:, self.prefix - 1 : -1]

    def all_logits(self, prefix: Tensor, ids: Tensor, mask: Tensor) -> Float[Tensor, "captions all vocabulary"]:
        """Logits after every vector of the prefix and every word."""
        embedded = torch.cat([prefix.to(self.llm.dtype), self.llm.get_input_embeddings()(ids)], dim=1)
        ones = mask.new_ones(len(ids), self.prefix)
        full = torch.cat([ones, mask], dim=1).long()
        return self.llm(
            inputs_embeds=embedded, attention_mask=full, position_ids=self._positions(full), use_cache=False
        ).logits

    def read(self, prefix: Float[Tensor, "images prefix width"]) -> Spoken:
        """Run the language model over prefixes; gradients flow into them."""
        out: Any = self.llm(inputs_embeds=prefix.to(self.llm.dtype), use_cache=True)
        layers = getattr(out, cache_name(self.llm)).layers
        return Spoken([(layer.keys, layer.values) for layer in layers], out.logits[:, -1])

    def follow(
        self, spoken: Spoken, ids: Int[Tensor, "captions words"], mask: Int[Tensor, "captions words"]
    ) -> Float[Tensor, "captions words vocabulary"]:
        """As `logits`, for several captions of one image whose prefix has been read once."""
        first = spoken.last[:, None].expand(len(ids), -1, -1)
        if ids.shape[1] == 1:
            return first
        full = torch.cat([mask.new_ones(len(ids), self.prefix), mask[:, :-1]], dim=1).long()
        rest: Any = self.llm(
            inputs_embeds=self.llm.get_input_embeddings()(ids[:, :-1]),
            attention_mask=full,
            position_ids=self._positions(full)[:, self.prefix :],
            use_cache=True,
            **{cache_name(self.llm): spoken.cache(len(ids))},
        )
        return torch.cat([first, rest.logits], dim=1)

    def search(self, spoken: Spoken, *, beams: int, captions: int, most: int) -> list[list[list[int]]]:
        """Beam search with the published scoring; see `perdure.models.captioner.beam`."""
        images = len(spoken.last)
        cache: Any = spoken.cache(beams)
        name = cache_name(self.llm)
        place = self.prefix
        words = self.words
        settings = Beam(beams=beams, captions=captions, most=min(most, self.room - 1), start=words.start, end=words.end)

        def advance(last: Tensor, rows: Tensor | None) -> Tensor:
            nonlocal place
            if rows is not None:
                cache.reorder_cache(rows)
            position = torch.full((len(last), 1), place, device=last.device)
            place += 1
            out: Any = self.llm(
                inputs_embeds=self.llm.get_input_embeddings()(last[:, None]),
                position_ids=position,
                use_cache=True,
                **{name: cache},
            )
            return out.logits[:, -1]

        return beam_search(advance, images, settings, device=self.device)

    @torch.no_grad()
    def generate(self, prefix: Float[Tensor, "images prefix width"], **settings: Any) -> list[list[list[int]]]:
        """transformers' own generation after ``[prefix, start]``: sampling, or today's beam search."""
        start = self.llm.get_input_embeddings()(torch.full((len(prefix), 1), self.words.start, device=self.device))
        llm: Any = self.llm
        found = llm.generate(
            inputs_embeds=torch.cat([prefix.to(self.llm.dtype), start], dim=1),
            attention_mask=torch.ones(len(prefix), self.prefix + 1, dtype=torch.long, device=self.device),
            eos_token_id=self.words.end,
            pad_token_id=self.words.pad,
            **settings,
        )
        rows = [[self.words.start, *self.words.until_end(row)] for row in found.tolist()]  # type: ignore[union-attr]
        each = len(rows) // max(len(prefix), 1)
        return [rows[i * each : (i + 1) * each] for i in range(len(prefix))]

    def captions(self, found: Sequence[Sequence[int]]) -> list[str]:
        """Texts of ids: no special tokens, stripped, in lower case."""
        return [text.strip().lower() for text in self.words.decode(found)]

    def provenance(self) -> dict[str, Any]:
        """JSON-ready facts for the result card."""
        return {
            "weights": str(self.llm.config.name_or_path),
            "mapper": type(self.mapper).__name__,
            "prefix": self.prefix,
            "parameters": sum(p.numel() for p in self.mapper.parameters()),
        }

    def _positions(self, mask: Int[Tensor, "captions all"]) -> Int[Tensor, "captions all"]:
        """OPT counts real tokens (and gives padding the place before the first); others count all."""
        if self.llm.config.model_type == "opt":
            return mask.cumsum(1) * mask - 1
        return torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
