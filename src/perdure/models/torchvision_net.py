"""A classifier of torchvision (ResNet, ViT, ConvNeXt ...) trained on ImageNet, or weights of one's own.

Needs: 0.1 GB for ResNet-50, 0.4 GB for ViT-B/16.

Knows torchvision's architectures, their published weights and a plain preprocessing: shorter side, centre crop, mean
and spread of ImageNet. Does not know classes' names: outputs are labels by number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

if TYPE_CHECKING:
    from torch import nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a torchvision classifier."""

    architecture: str = "resnet50"
    """Any of `torchvision.models` that classifies: `resnet50`, `vit_b_16`, `convnext_tiny` ..."""
    weights: str = "IMAGENET1K_V1"
    """Torchvision's name of published weights, which are fetched once; a state dict (`.pth`, `.safetensors`); or `none`
    for random ones."""
    classes: Annotated[int, Field(ge=1)] = 1000
    """Outputs of the head."""
    resize: Annotated[int, Field(ge=1)] | None = 256
    """Shorter side of an image before the crop; null: as it is (ImageNet-C comes in 224 x 224)."""
    crop: Annotated[int, Field(ge=1)] = 224
    """Side of the centre crop."""


def load(config: Config) -> nn.Module:
    """The classifier, in evaluation mode.

    Raises:
        WeightsError: there is no such architecture, or its weights cannot be had or do not fit.
    """
    from torch import nn
    from torchvision import models

    from perdure.errors import WeightsError
    from perdure.layers import weights
    from perdure.models.clip.transform import ClipTransform

    if config.architecture not in models.list_models(models):
        known = ", ".join(["resnet18", "resnet50", "vit_b_16", "convnext_tiny"])
        raise WeightsError(f"torchvision has no {config.architecture!r}", where="models", expected=f"{known} ...")
    own = config.weights == "none" or Path(config.weights).suffix in (".pth", ".pt", ".safetensors")
    try:
        published = None if own else config.weights
        net: Any = models.get_model(config.architecture, weights=published, num_classes=config.classes)
    except (OSError, RuntimeError, ValueError, KeyError) as fault:
        raise WeightsError(
            f"{config.weights} of {config.architecture} cannot be had ({fault})",
            where="models",
            todo="Fetch them where there is a network, or set `weights` to a state dict.",
        ) from None
    if own and config.weights != "none":
        weights.load_into(net, Path(config.weights).expanduser())

    class Pictures(nn.Module):
        """The network behind its normalisation: takes pixels in 0..1."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.classes = net, config.classes
            side = config.resize or config.crop
            self.transform = ClipTransform(
                size=config.crop, shorter_side=side, mean=MEAN, std=STD, interpolation="bilinear"
            )

        def forward(self, pixels: Any) -> Any:
            return self.net(self.transform.normalize(255 * pixels).to(pixels.dtype))

    return Pictures().eval()
