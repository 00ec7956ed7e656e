"""Training images as a frozen image backbone sees them: as in a test, or in random crops.

Knows pixels. Does not know models, heads or losses; features are `perdure.families.clip.classifier`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torchvision.transforms import v2 as V

from perdure.images import open_image
from perdure.models.clip import ClipTransform
from perdure.types import Batch, Example

Augment = Literal["crop_flip", "none"]


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
