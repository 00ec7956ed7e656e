"""A frozen image backbone, a Vit or a CLIP's image tower: its features, and the training images as it sees them.

Knows the role `backbone` and crops. Does not know heads, losses or what a method inserts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms import v2 as V

from perdure import training
from perdure.images import open_image
from perdure.loading import ExampleBatches
from perdure.models.clip import ClipTransform
from perdure.runtime import Runtime
from perdure.types import Batch, Example

Augment = Literal["crop_flip", "none"]


class Backbone(Protocol):
    """What methods that need only features ask of a model: `perdure.models.vit` and `perdure.models.clip` have it."""

    transform: ClipTransform

    @property
    def dim(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...

    def image_features(self, pixels: Float[Tensor, "images 3 size size"]) -> Float[Tensor, "images dim"]: ...


@dataclass(frozen=True)
class Preprocessor:
    """An Example as a backbone's loader takes it: ``{"image": uint8 [3 size size], "label": int}``.

    In training, with ``crop_flip``: a crop of a share of the area, resized, mirrored half of the time.
    """

    transform: ClipTransform
    augment: Augment = "none"
    smallest: float = 0.05
    """Least share of the image's area in a crop."""

    def __call__(self, example: Example, training: bool) -> Batch:
        image = example.inputs["image"]
        pixels = self.cropped(image) if training and self.augment == "crop_flip" else self.transform.pixels(image)
        return {"image": pixels} if example.target is None else {"image": pixels, "label": int(example.target)}

    def cropped(self, image: Any) -> Tensor:
        """uint8 [3 size size], drawn from torch's global generator, which the loader seeds by the example."""
        whole = V.functional.pil_to_tensor(open_image(image))
        size = self.transform.size
        crop = V.RandomResizedCrop(size, scale=(self.smallest, 1.0), ratio=(3 / 4, 4 / 3), antialias=True)
        return V.RandomHorizontalFlip()(crop(whole))


def encode(
    backbone: Backbone, examples: Sequence[Example], *, batch_size: int, runtime: Runtime, stage: str = "features"
) -> dict[str, Tensor]:
    """One pass over the images as in a test: ``feature`` [images dim], ``label``, ``position`` [images], on the CPU."""
    batches = ExampleBatches(
        examples, Preprocessor(backbone.transform), batch_size=batch_size, runtime=runtime, stage=stage, training=False
    )

    def one(batch: Batch) -> dict[str, Tensor]:
        return {"feature": features(backbone, batch), "label": batch["label"]}

    return training.features(one, batches, runtime=runtime)


def features(backbone: Backbone, batch: Batch) -> Float[Tensor, "images dim"]:
    """Features of a batch that `Preprocessor` made, not scaled to unit length."""
    return backbone.image_features(backbone.transform.normalize(batch["image"]))
