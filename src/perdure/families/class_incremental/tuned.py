"""What is tuned when a whole network learns classes: a CLIP under its classes' texts, or a backbone under a head.

Knows what is trained, logits of classes by label, and what is saved. Does not know losses or past tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perdure import training
from perdure.errors import RecipeError
from perdure.families.class_incremental import heads
from perdure.families.class_incremental.settings import Tuning
from perdure.families.clip import classifier, export
from perdure.families.clip.frozen_tower import FrozenTower
from perdure.layers import lora
from perdure.loading import Batches, ExampleBatches, TensorBatches
from perdure.models.clip import Clip
from perdure.models.vit import Vit
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query

Logits = Callable[[Batch], Float[Tensor, "images classes"]]
ATTENTION = r"blocks\.\d+\.attn\.(qkv|proj)"
"""Where a vision transformer gets adapters."""


class Network(Protocol):
    """A network whose logits are learned. `parameters` are those that are there before any class is."""

    transform: Any
    parameters: dict[str, nn.Parameter]

    @property
    def clip(self) -> Clip | None:
        """The CLIP under whose texts it answers; none of a head."""

    def logits(self, classes: Sequence[str], runtime: Runtime, *, labels: Sequence[int] | None = None) -> Logits:
        """Logits of a batch in training, with gradients.

        Args:
            classes: names of all classes so far by label; a head grows to them.
            labels: of these alone; None: of all.
        """
        ...

    def fit(self, loss: training.Loss, examples: Sequence[Example], runtime: Runtime) -> None:
        """Adam over the images, stage ``train``."""
        ...

    def table(
        self, classes: Sequence[str], examples: Sequence[Example], runtime: Runtime
    ) -> Float[Tensor, "examples classes"]:
        """Logits of the first classes as they are now, by position, on the CPU; 0 where an image cannot be read."""
        ...

    def begin_anew(self, initial: Mapping[str, Tensor]) -> None:
        """Weights as they were, and no class."""
        ...

    def predictor(self, query: Query) -> Logits: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
    def export(self, folder: Path, classes: Sequence[str]) -> str | None: ...


def network(config: Tuning, clip: Clip | None, vit: Vit | None) -> Network:
    """By the role that is given.

    Raises:
        RecipeError: neither or both; or settings that do not go with it.
    """
    model = one_of(clip=clip, vit=vit)
    return UnderTexts(model, config) if isinstance(model, Clip) else UnderHead(model, config)


def one_of(**roles: Any) -> Any:
    """The one model that is given.

    Raises:
        RecipeError: none or several.
    """
    given = [role for role, model in roles.items() if model is not None]
    if len(given) != 1:
        raise RecipeError(
            f"found {' and '.join(given) or 'none'}", where="models", expected=f"one of {', '.join(roles)}"
        )
    return roles[given[0]]


class UnderTexts:
    """A CLIP whose logits are cosines with a prompt of each class, times its scale."""

    def __init__(self, clip: Clip, config: Tuning) -> None:
        classifier.check_template(config.template)
        if config.trains == "head":
            raise RecipeError(
                "a CLIP has no head", where="method.trains", expected="lora or all", todo="Or give `vit`."
            )
        self.clip, self.config, self.transform = clip, config, clip.transform
        self.parameters = classifier.trainable(
            clip, config.trains, mode=config.lora_mode, rank=config.lora_rank, alpha=config.lora_alpha
        )

    def logits(self, classes: Sequence[str], runtime: Runtime, *, labels: Sequence[int] | None = None) -> Logits:
        names = classes if labels is None else [classes[label] for label in labels]
        ids = classifier.tokenize(self.clip, self._prompts(names), runtime.device)
        return lambda batch: classifier.logits(self.clip, batch["image"], ids)

    def fit(self, loss: training.Loss, examples: Sequence[Example], runtime: Runtime) -> None:
        classifier.fit(loss, self.parameters, self.clip, examples, self.config, runtime=runtime)

    def table(
        self, classes: Sequence[str], examples: Sequence[Example], runtime: Runtime
    ) -> Float[Tensor, "examples classes"]:
        found = classifier.encode_images(self.clip, examples, batch_size=self.config.batch_size, runtime=runtime)
        texts = classifier.encode_prompts(self.clip, self._prompts(classes)).cpu()
        return _by_position(self.clip.scale.item() * found["feature"] @ texts.T, found["position"], len(examples))

    def begin_anew(self, initial: Mapping[str, Tensor]) -> None:
        classifier.restore_parameters(self.parameters, initial)

    def predictor(self, query: Query) -> Logits:
        return classifier.text_predictor(self.clip, self.config.template, query, clean=self.config.clean_names)

    def state_dict(self) -> dict[str, Any]:
        return {"parameters": classifier.copy_parameters(self.parameters)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        classifier.restore_parameters(self.parameters, state["parameters"])

    def export(self, folder: Path, classes: Sequence[str]) -> str:
        """The trained model, or the pretrained one and its PEFT adapter; and the classes."""
        config = self.config
        return export.save_prompted(self.clip, folder, classes, template=config.template, clean=config.clean_names)

    def _prompts(self, names: Sequence[str]) -> list[str]:
        return classifier.prompts(self.config.template, names, clean=self.config.clean_names)


class UnderHead:
    """An image backbone and a head over its features that gets rows when classes come."""

    clip: Clip | None = None

    def __init__(self, vit: Vit, config: Tuning) -> None:
        self.vit, self.config, self.transform = vit, config, vit.transform
        self.head = heads.Head(vit.dim, heads.uniform(vit.dim), cosine=config.head == "cosine")
        self.parameters: dict[str, nn.Parameter] = {}
        if config.trains == "lora":
            rank, alpha = config.lora_rank, config.lora_alpha
            self.parameters = lora.add_lora(vit.transformer(), targets=ATTENTION, r=rank, alpha=alpha)
        elif config.trains == "all":
            vit.network.requires_grad_(True)
            self.parameters = dict(vit.network.named_parameters())

    def logits(self, classes: Sequence[str], runtime: Runtime, *, labels: Sequence[int] | None = None) -> Logits:
        self.head.grow(len(classes), runtime, like=next(self.vit.parameters()))
        own = list(range(len(classes)) if labels is None else labels)
        return lambda batch: self.head(self._features(batch))[:, own]

    def fit(self, loss: training.Loss, examples: Sequence[Example], runtime: Runtime) -> None:
        """A frozen backbone sees each image once."""
        config = self.config
        head = {f"head.{name}": p for name, p in self.head.named_parameters()}
        groups = [training.Group(parameters=head, lr=config.head_lr)]
        groups += [training.Group(parameters=self.parameters)] if self.parameters else []
        how = training.Fit(epochs=config.epochs, lr=config.lr, schedule="cosine_epoch", accumulate=config.accumulate)
        batches = self._batches(examples, runtime)
        training.fit(loss, groups, batches, how, runtime=runtime, stage="train")

    def _batches(self, examples: Sequence[Example], runtime: Runtime) -> Batches:
        size = self.config.batch_size
        if self.config.trains == "head":
            found = self._pass_over(examples, runtime)
            found["place"] = found.pop("position")  # batches number the rows that there are
            return TensorBatches(found, batch_size=size, runtime=runtime, stage="train")
        look = classifier.Preprocessor(self.transform)
        return ExampleBatches(examples, look, batch_size=size, runtime=runtime, stage="train", training=True)

    def _pass_over(self, examples: Sequence[Example], runtime: Runtime) -> dict[str, Tensor]:
        """Features as they are now; those of a frozen backbone are kept."""
        size = self.config.batch_size
        if self.config.trains == "head":
            return FrozenTower(self.vit).pass_over(examples, batch_size=size, runtime=runtime)
        return classifier.encode_images(self.vit, examples, batch_size=size, runtime=runtime, unit=False)

    def _features(self, batch: Batch) -> Float[Tensor, "images dim"]:
        if "feature" in batch:
            return batch["feature"]
        return classifier.raw_image_features(self.vit, batch["image"])

    @torch.no_grad()
    def table(
        self, classes: Sequence[str], examples: Sequence[Example], runtime: Runtime
    ) -> Float[Tensor, "examples classes"]:
        found = self._pass_over(examples, runtime)
        logits = self.head(found["feature"].to(self.head.weight))[:, : len(classes)]
        return _by_position(logits.cpu(), found["position"], len(examples))

    def begin_anew(self, initial: Mapping[str, Tensor]) -> None:
        classifier.restore_parameters(self.parameters, initial)
        self.head.empty()

    def predictor(self, query: Query) -> Logits:
        own = slice(query.offset, query.offset + len(query.candidates))

        def predict(batch: Batch) -> Tensor:
            return classifier.widen(self.head(self._features(batch))[:, own], classes=len(query.candidates))

        return predict

    def state_dict(self) -> dict[str, Any]:
        head = {name: tensor.detach().clone() for name, tensor in self.head.state_dict().items()}
        return {"parameters": classifier.copy_parameters(self.parameters), "head": head}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        classifier.restore_parameters(self.parameters, state["parameters"])
        self.head.load(state["head"])

    def export(self, folder: Path, classes: Sequence[str]) -> None:
        """Nothing that others read: perdure's own state is kept instead."""


def places(batch: Batch) -> Tensor:
    """Which examples a batch in training holds, on the CPU: rows of a `table`."""
    return batch["place"].cpu() if "place" in batch else batch["position"]


def _by_position(
    rows: Float[Tensor, "readable classes"], position: Tensor, count: int
) -> Float[Tensor, "examples classes"]:
    table = rows.new_zeros(count, rows.shape[1])
    return table.index_copy_(0, position, rows)
