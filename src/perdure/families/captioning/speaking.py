"""Captions of images by a captioner: the published beam search, or transformers' generation.

Knows a CLIP, a captioner and how captions are decoded. Does not know files or what is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import RecipeError
from perdure.families.captioning.adapting import drawn
from perdure.families.clip import classifier
from perdure.families.clip.clipscore import unit
from perdure.types import Batch, Example

if TYPE_CHECKING:
    from perdure.models.captioner import Captioner
    from perdure.models.clip import Clip

Decoding = Literal["official", "transformers", "nucleus"]
"""`official`: beam search with the scoring of transformers 4.26. `transformers`: today's. `nucleus`: drawn."""


class Speaking(Protocol):
    """What a method's settings say about describing an image."""

    @property
    def decoding(self) -> Decoding: ...
    @property
    def beams(self) -> int: ...
    @property
    def most_words(self) -> int: ...
    @property
    def top_p(self) -> float: ...


def preprocess(clip: Clip, example: Example) -> Batch:
    """One image as the loader brings it."""
    return {"image": clip.transform.pixels(example.inputs["image"])}


def predictor(clip: Clip, captioner: Captioner, settings: Speaking) -> Callable[[Batch], list[str]]:
    """A function that describes the images of a batch."""

    def predict(batch: Batch) -> list[str]:
        return captions_of(
            captioner,
            caption_features(clip, batch),
            decoding=settings.decoding,
            beams=settings.beams,
            most=settings.most_words,
            top_p=settings.top_p,
            seeds=batch["seed"].tolist(),
        )

    return predict


def caption_features(clip: Clip, batch: Batch) -> Float[Tensor, "images dim"]:
    """Unit features of a batch of images."""
    return unit(classifier.unit_image_features(clip, batch["image"]))


@torch.no_grad()
def captions_of(
    captioner: Captioner,
    features: Float[Tensor, "images dim"],
    *,
    decoding: Decoding,
    beams: int,
    most: int,
    top_p: float = 0.92,
    seeds: Sequence[int] = (),
) -> list[str]:
    """One caption an image.

    Args:
        seeds: one an image, for `nucleus`.
    """
    prefix = captioner.mapper(features)
    if decoding == "official":
        found = captioner.search(captioner.read(prefix), beams=beams, captions=1, most=most)
    elif decoding == "transformers":
        found = captioner.generate(prefix, num_beams=beams, do_sample=False, max_new_tokens=most)
    else:
        settings: dict[str, Any] = {"do_sample": True, "top_p": top_p, "top_k": 0}
        found = [
            drawn(captioner, one[None], (seed, 0), samples=1, most=most, **settings)[0]
            for one, seed in zip(prefix, seeds, strict=True)
        ]
    return captioner.captions([captions[0] for captions in found])


def require_widths(captioner: Captioner, clip: Clip) -> None:
    """RecipeError if the mapper does not take this CLIP's features."""
    if captioner.dim != clip.dim:
        raise RecipeError(
            f"the mapper takes features of {captioner.dim} numbers, and this CLIP makes {clip.dim}",
            where="models.captioner.dim",
            todo=f"Set models.captioner.dim={clip.dim}.",
        )
