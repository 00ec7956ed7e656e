"""Captions of images by a captioner: the published beam search, or transformers' generation.

Knows a captioner and unit features. Does not know images or methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import RecipeError
from perdure.nn.captioning.adapting import drawn

if TYPE_CHECKING:
    from perdure.models.captioner import Captioner
    from perdure.models.clip import Clip

Decoding = Literal["official", "transformers", "nucleus"]
"""`official`: beam search with the scoring of transformers 4.26. `transformers`: today's. `nucleus`: drawn."""


@torch.no_grad()
def captions_of(
    captioner: Captioner,
    features: Float[Tensor, "images dim"],
    *,
    decoding: Decoding,
    beams: int,
    most: int,
    top_p: float = 0.92,
    keys: Sequence[int] = (),
) -> list[str]:
    """One caption an image.

    Args:
        keys: one an image, for `nucleus`.
    """
    prefix = captioner.mapper(features)
    if decoding == "official":
        found = captioner.search(captioner.read(prefix), beams=beams, captions=1, most=most)
    elif decoding == "transformers":
        found = captioner.generate(prefix, num_beams=beams, do_sample=False, max_new_tokens=most)
    else:
        settings: dict[str, Any] = {"do_sample": True, "top_p": top_p, "top_k": 0}
        found = [
            drawn(captioner, one[None], (key, 0), samples=1, most=most, **settings)[0]
            for one, key in zip(prefix, keys, strict=True)
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
