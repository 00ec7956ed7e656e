"""Parameter-efficient tuning of a vision transformer on the first task alone, with a cosine head that is thrown away.

Knows adapters beside the MLPs (AdaptFormer, Chen et al. 2022), scales and shifts of features (SSF, Lian et al. 2022)
and deep prompts (VPT, Jia et al. 2022). Does not know what comes after the first task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perdure import training
from perdure.errors import RecipeError
from perdure.families.clip import classifier
from perdure.loading import ExampleBatches, Preprocess
from perdure.models.vit import Vit
from perdure.runtime import Runtime
from perdure.types import Batch, Task


class Settings(Protocol):
    """What a session reads of a method's settings."""

    @property
    def first_session(self) -> str: ...
    @property
    def epochs(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def session_batch_size(self) -> int: ...
    @property
    def bottleneck(self) -> int: ...
    @property
    def adapter_scale(self) -> float: ...
    @property
    def dropout(self) -> float: ...
    @property
    def prompts(self) -> int: ...


class Session:
    """What is tuned, in place in the backbone, and how."""

    def __init__(self, vit: Vit, tuned: nn.Module) -> None:
        self.vit, self.tuned, self.head = vit, tuned, CosineHead
        tuned.to(vit.dtype).eval()

    def learn(self, task: Task, preprocess: Preprocess, settings: Settings, runtime: Runtime) -> None:
        """SGD on cross-entropy over the task's classes; the head is drawn anew and dropped at the end."""
        taught = classifier.Taught(task)
        head = self.head(self.vit.dim, len(taught.labels)).to(self.vit.device, self.vit.dtype)
        with torch.no_grad():
            head.draw(runtime.generator("head"))
            self.draw(runtime)
        self.tuned.train()
        batches = ExampleBatches(
            task.train,
            preprocess,
            batch_size=settings.session_batch_size,
            runtime=runtime,
            stage="session",
            training=True,
        )

        def loss(batch: Batch) -> Tensor:
            features = classifier.raw_image_features(self.vit, batch["image"])
            return F.cross_entropy(head(features), taught.places(batch["label"]))

        parameters = dict(self.tuned.named_parameters()) | {f"head.{n}": p for n, p in head.named_parameters()}
        how = training.Fit(
            epochs=settings.epochs,
            lr=settings.lr,
            optimizer="sgd",
            momentum=0.9,
            weight_decay=settings.weight_decay,
            schedule="cosine_epoch",
            floor=0.0,
        )
        training.fit(loss, parameters, batches, how, runtime=runtime, stage="session")
        self.tuned.requires_grad_(False).eval()

    def draw(self, runtime: Runtime) -> None:
        """First values of what is tuned, by keyed generators; tokens start at 0."""
        for name, module in self.tuned.named_modules():
            if isinstance(module, Adapter | ScaleShift):
                module.draw(runtime.generator("tuned", name))

    def state_dict(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.tuned.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.tuned.load_state_dict(state)


def make(settings: Settings, backbone: Any) -> Session | None:
    """The session that the settings ask for, put into the backbone; None for none.

    Raises:
        RecipeError: the backbone is no plain vision transformer.
    """
    kind = settings.first_session
    if kind == "none":
        return None
    if not isinstance(backbone, Vit):
        raise RecipeError(
            f"a first session ({kind}) needs a vision transformer of role model `vit`",
            where="method.first_session",
            todo="Give `models.vit`, or method.first_session=none.",
        )
    network = backbone.transformer()
    if kind == "adapter":
        made = [
            Adapter(backbone.dim, settings.bottleneck, scale=settings.adapter_scale, dropout=settings.dropout)
            for _ in network.blocks
        ]
        for block, adapter in zip(network.blocks, made):
            block.adapter = adapter
        return Session(backbone, nn.ModuleList(made))
    if kind == "vpt_deep":
        tokens = [Tokens(settings.prompts, backbone.dim) for _ in network.blocks]
        for block, own in zip(network.blocks, tokens):
            block.extra = own
        return Session(backbone, nn.ModuleList(tokens))
    return Session(backbone, nn.ModuleList(_scale_all(network)))


def _scale_all(network: nn.Module) -> list[nn.Module]:
    """Scales and shifts after the patches, every layer norm and every linear layer, put in place of those modules."""
    found = []
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.LayerNorm | nn.Linear) or name == "patch_embed":
            after = ScaleShift(_width(module))
            module.register_forward_hook(after.hook)
            found.append(after)
    return found


def _width(module: Any) -> int:
    """Channels of what a module gives."""
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.normalized_shape[0] if isinstance(module, nn.LayerNorm) else module.proj.out_channels


class CosineHead(nn.Module):
    """``sigma * cosine(feature, weight)``."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, dim))
        self.sigma = nn.Parameter(torch.ones(1))

    def draw(self, generator: torch.Generator) -> None:
        """Uniform within one over the root of the width."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        self.weight.copy_(torch.empty(self.weight.shape).uniform_(-bound, bound, generator=generator))

    def forward(self, features: Float[Tensor, "images dim"]) -> Float[Tensor, "images classes"]:
        return self.sigma * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))


class Adapter(nn.Module):
    """``scale * (relu(x A + a) B + b)``, added beside an MLP; B, a and b start at 0."""

    def __init__(self, dim: int, bottleneck: int, *, scale: float, dropout: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, bottleneck), nn.Linear(bottleneck, dim)
        self.scale, self.dropout = scale, dropout
        for tensor in (self.down.weight, self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def draw(self, generator: torch.Generator) -> None:
        fresh = torch.empty(self.down.weight.shape)
        self.down.weight.copy_(nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator))

    def forward(self, x: Float[Tensor, "images tokens dim"]) -> Float[Tensor, "images tokens dim"]:
        hidden = F.dropout(F.relu(self.down(x)), self.dropout, self.training)
        return self.scale * self.up(hidden)


class ScaleShift(nn.Module):
    """``x * scale + shift`` by channel, after a module; starts near 1 and 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def draw(self, generator: torch.Generator) -> None:
        self.scale.copy_(1 + 0.02 * torch.randn(self.scale.shape, generator=generator))
        self.shift.copy_(0.02 * torch.randn(self.shift.shape, generator=generator))

    def hook(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        """As a forward hook of the module before it."""
        return output * self.scale + self.shift


class Tokens(nn.Module):
    """Tokens at the end of a block's sequence, cut off again after it; start at 0."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.zeros(count, dim))

    def forward(self, x: Float[Tensor, "images tokens dim"]) -> Float[Tensor, "images count dim"]:
        return self.vectors.expand(len(x), -1, -1)
