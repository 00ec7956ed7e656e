"""Episodes of several images in one batch, each with image-encoder weights of its own.

Knows weights stacked along a first axis of images, the episodes' steps and one objective an image. Does not know where
views or rewards come from, batch norm, or episodes that begin where another ended: those run one by one.

The encoder is mapped over (weights, views), so that each layer is one batched product. AdamW works number by number:
every image's numbers move as if it were alone. Memory holds weights, gradients and two moments for each image.

By hand, one weight w = 1 and three images whose losses are w, 2w and 0: stacked weights are (1, 1, 1), the gradient of
the losses' sum is (1, 2, 0), and AdamW's first step of rate 0.1, without decay, gives (0.9, 0.9, 1): as in three
episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from perdure.families.test_time.half import loss_scale, unscale
from perdure.families.test_time.losses import Objective
from perdure.families.test_time.prompt_tuning import Steps


class StackedEncoder:
    """An encoder that several images run at once, with weights of their own.

    Args:
        module: what holds the weights.
        encode: pixels -> features, by `module`.
        texts: unit features of the classes.
    """

    def __init__(
        self,
        module: nn.Module,
        encode: Callable[[Tensor], Tensor],
        texts: Float[Tensor, "classes dim"],
        *,
        scale: Float[Tensor, ""],
    ) -> None:
        self.called, self.texts, self.scale = _Called(module, encode), texts, scale
        self.features = vmap(lambda weights, pixels: functional_call(self.called, weights, (pixels,)))

    def scores(
        self, weights: Mapping[str, Float[Tensor, "images ..."]], pixels: Float[Tensor, "images views 3 height width"]
    ) -> Float[Tensor, "images views classes"]:
        """Logits of each image's views under its weights; weights that are not given are shared."""
        named = {f"module.{name}": tensor for name, tensor in weights.items()}
        # PyTorch maps its fused attention of the CPU in a loop; the written-out one is mapped as a whole.
        with sdpa_kernel(SDPBackend.MATH) if pixels.device.type == "cpu" else nullcontext():
            features = self.features(named, pixels)
        return self.scale * F.normalize(features, dim=-1) @ self.texts.T


def adapt_together(
    encoder: StackedEncoder,
    first: Mapping[str, Tensor],
    kept: Float[Tensor, "images kept 3 height width"],
    objectives: Sequence[Objective],
    steps: Steps,
) -> dict[str, Float[Tensor, "images ..."]]:
    """The adapted weights of every image.

    Args:
        first: the weights that move, where all begin; not changed.
        kept: the selected views.
        objectives: one an image.
    """
    images = len(kept)
    # 1) a copy of the first weights for each image: [images ...]
    weights = {
        name: tensor.detach().expand(images, *tensor.shape).clone().requires_grad_() for name, tensor in first.items()
    }
    optimizer = torch.optim.AdamW(
        list(weights.values()), lr=steps.lr, weight_decay=steps.weight_decay, eps=steps.eps, fused=True
    )
    for _ in range(steps.count):
        # 2) all images' views through their own weights, one loss each
        with torch.enable_grad():
            logits = encoder.scores(weights, kept)
            losses = torch.stack([objective(own[None])[0] for objective, own in zip(objectives, logits, strict=True)])
        optimizer.zero_grad(set_to_none=True)
        if losses.requires_grad:
            # 3) the sum's gradient is each loss's own: no weight is shared
            scale = loss_scale(losses.device)
            (losses.sum() * scale).backward()
            if scale != 1:
                unscale([w.grad for w in weights.values() if w.grad is not None], scale, stacked=True)
        optimizer.step()
        torch.clear_autocast_cache()
    return {name: tensor.detach() for name, tensor in weights.items()}


class _Called(nn.Module):
    """A module whose forward is another function of it: what `functional_call` takes."""

    def __init__(self, module: nn.Module, encode: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.encode = module, encode

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encode(pixels)
