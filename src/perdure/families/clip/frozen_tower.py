"""Features of an image tower that a method leaves as it is: made once, and kept on disk where `run.features` says so.

What is kept are features as the tower gives them, one row an image; methods that want unit features make them so. The
rows are those that methods at test time keep of one view: whoever comes second reads them.

Knows a tower, its preprocessing and what its features depend on. Does not know what is done with features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perdure import features, training
from perdure.families.clip import classifier
from perdure.loading import ExampleBatches
from perdure.runtime import Runtime
from perdure.types import Batch, Example


class FrozenTower:
    """As `perdure.features` takes it.

    Args:
        tower: what gives the features.
        of: another part of the tower than what its `image_features` gives: its name and how it is made of normalized
            pixels.
        beside: what its features depend on beside its weights, as tensors.
    """

    def __init__(
        self,
        tower: classifier.ImageTower,
        *,
        of: tuple[str, Callable[[Tensor], Tensor]] | None = None,
        beside: Callable[[], dict[str, Tensor]] | None = None,
    ) -> None:
        self.tower, self.of, self.beside = tower, of, beside

    def preprocess(self, example: Example, training: bool) -> Batch:
        return classifier.Preprocessor(self.tower.transform)(example, training)

    @torch.no_grad()
    def encode(self, batch: Batch) -> dict[str, Float[Tensor, "images dim"]]:
        """Features of a batch of `preprocess`, not scaled to unit length."""
        pixels = self.tower.transform.normalize(batch["image"])
        return {"feature": self.tower.image_features(pixels) if self.of is None else self.of[1](pixels)}

    def encoder(self) -> dict[str, Any]:
        """All that `encode` depends on beside the images."""
        key = tower_key(self.tower)
        key |= {} if self.of is None else {"of": self.of[0]}
        return key | ({} if self.beside is None else {"beside": features.digest(self.beside())})

    def raw(self, batch: Batch) -> Float[Tensor, "images dim"]:
        """Features of a batch of `preprocess`, or those that stand in its place."""
        return batch["feature"] if "feature" in batch else self.encode(batch)["feature"]

    def unit(self, batch: Batch) -> Float[Tensor, "images dim"]:
        """The same, of unit length."""
        return F.normalize(self.raw(batch), dim=1)

    def pass_over(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int,
        runtime: Runtime,
        unit: bool = False,
        stage: str = "features",
    ) -> dict[str, Tensor]:
        """One pass: ``feature`` [images dim], ``label`` and ``position`` [images], on the CPU.

        Rows are in the order of `examples`; those that cannot be read are left out.
        """
        if runtime.features is None or runtime.processes > 1:
            batches = ExampleBatches(
                examples, self.preprocess, batch_size=batch_size, runtime=runtime, stage=stage, training=False
            )
            found = training.features(
                lambda batch: {**self.encode(batch), "label": batch["label"]}, batches, runtime=runtime
            )
        else:
            found = self._kept(examples, batch_size=batch_size, runtime=runtime, stage=stage)
        return {**found, "feature": F.normalize(found["feature"], dim=1)} if unit else found

    def _kept(self, examples: Sequence[Example], *, batch_size: int, runtime: Runtime, stage: str) -> dict[str, Tensor]:
        """The same through the cache."""
        batches = features.batches(self, examples, batch_size=batch_size, runtime=runtime, stage=stage)
        rows = [(training.whole(b["feature"], runtime).cpu(), b["position"]) for b in batches if b is not None]
        training.require_rows(rows, stage=stage)
        made, position = (torch.cat(column) for column in zip(*rows))
        label = torch.tensor([examples[i].target for i in position.tolist()])
        return {"feature": made, "label": label, "position": position}


class OnFrozenTower:
    """A method whose tests, too, are answered from the features of `frozen`."""

    frozen: FrozenTower

    def preprocess(self, example: Example, training: bool) -> Batch:
        return self.frozen.preprocess(example, training)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Frozen features of a batch of `preprocess`."""
        return self.frozen.encode(batch)

    def encoder(self) -> dict[str, Any]:
        """All that `encode` depends on beside the images: the key of a feature cache."""
        return self.frozen.encoder()


def tower_key(tower: Any) -> dict[str, Any]:
    """What the features of one plain view depend on beside the image."""
    return {
        "weights": features.digest(tower.visual_parameters()),
        "dtype": str(tower.dtype),
        "attention": tower.provenance().get("attention"),
        "transform": repr(tower.transform),
        "views": 1,
    }
