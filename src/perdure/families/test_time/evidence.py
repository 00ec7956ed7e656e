"""What the views of a test image say together against fixed class features: a feature, logits, and how sure they are.

Knows unit features of views and of classes. Does not know encoders, nor what a method keeps of an image. One view
speaks for itself; of several, those of least entropy are averaged, features and logits alike (Karmanov et al., 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.errors import RecipeError
from perdure.families.test_time.losses import average_entropy, entropy, take_views

Pool = Literal["probabilities", "logits"]
"""How sure several views are: by the mean of their probabilities, or by the probabilities of their mean logits."""


@dataclass(frozen=True)
class Evidence:
    """Of some images, one row each."""

    feature: Float[Tensor, "images dim"]
    """Mean of the kept views' unit features, not normalised again."""
    logits: Float[Tensor, "images classes"]
    probabilities: Float[Tensor, "images classes"]
    entropy: Float[Tensor, " images"]
    """In nats."""
    label: Int[Tensor, " images"]
    """The class of the highest logit, the first of equal ones."""


def gather(
    features: Float[Tensor, "images views dim"],
    texts: Float[Tensor, "classes dim"],
    *,
    scale: float,
    kept: int,
    pool: Pool = "probabilities",
) -> Evidence:
    """The evidence of the `kept` views of least entropy, of the lower number among equals.

    By hand, two views with logits (2, 0) and (0, 2), both kept: the mean logits are (1, 1), the mean probabilities
    (1/2, 1/2), the entropy ln 2 and the label 0.
    """
    logits = scale * features @ texts.T
    if features.shape[1] == 1:
        z = logits[:, 0]
        return Evidence(features[:, 0], z, z.softmax(-1), entropy(z), z.argmax(-1))
    index = entropy(logits).argsort(dim=-1, stable=True)[:, :kept]
    chosen = take_views(logits, index)
    z, f = chosen.mean(1), take_views(features, index).mean(1)
    if pool == "logits":
        return Evidence(f, z, z.softmax(-1), entropy(z), z.argmax(-1))
    return Evidence(f, z, chosen.softmax(-1).mean(1), average_entropy(chosen), z.argmax(-1))


def share_of(views: int, share: float) -> int:
    """Whole views in a share of them, as Python's ``int(views * share)``: 19 of 64 at 0.3."""
    return int(views * share)


def kept_of(views: int, share: float) -> int:
    """Views that are kept of several; 1 of one.

    Raises:
        RecipeError: the share holds no view.
    """
    kept = 1 if views == 1 else share_of(views, share)
    if kept < 1:
        least = next(n for n in range(views, 10**6) if share_of(n, share) >= 1)
        raise RecipeError(
            f"{share:g} of {views} views is less than one view",
            where="method.selection",
            expected=f"at least {least} views, or a single one",
        )
    return kept


def normalized(h: Float[Tensor, " images"], classes: int) -> Float[Tensor, " images"]:
    """Entropy in nats over log2 of the number of classes, as the published code of TDA has it: at most ln 2."""
    return h / torch.tensor(float(classes), dtype=h.dtype, device=h.device).log2()
