"""Learning prompts and a linear head on a frozen vision transformer, task by task, and answering with them.

Knows queries and the loss over a task's own classes. Does not know where prompts come from: a method says what they are
and how images and queries become features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perdure import training
from perdure.errors import RecipeError
from perdure.families.class_incremental import backbone as backbones
from perdure.families.class_incremental import heads
from perdure.families.clip import classifier
from perdure.families.clip.frozen_tower import FrozenTower
from perdure.loading import ExampleBatches
from perdure.models.vit import Vit
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


class Prompted:
    """What prompt methods have alike. A method makes `prompts`, and says in `forward` what they do.

    State: the prompts, the head, the class names and how many tasks were learned.
    """

    scores_are = "logits"
    low = -1.0
    """Least first value of a prompt."""
    drop_last = False
    """Leave out an epoch's last batch where it is not full, unless it is the only one."""

    def __init__(self, config: Any, vit: Vit, prompts: nn.Module, start: heads.Start) -> None:
        self.config, self.vit = config, vit
        self.prompts: Any = prompts
        self.head = heads.Head(vit.dim, start)
        self.classes: list[str] = []
        self.tasks = 0

    def forward(self, pixels: Tensor, queries: Tensor, task: int | None) -> tuple[Tensor, Tensor | float]:
        """Features of normalized images ``[images dim]`` and what is added to the loss.

        Args:
            queries: features without prompts, ``[images dim]``.
            task: place of the task that is being learned; None in tests.
        """
        raise NotImplementedError

    def draw(self, runtime: Runtime) -> None:
        """First values of the prompts, each by its name: uniform in `low` .. 1."""
        for name, parameter in self.prompts.named_parameters():
            drawn = torch.empty(parameter.shape).uniform_(self.low, 1, generator=runtime.generator("prompts", name))
            parameter.data.copy_(drawn)

    def begin(self, task: Task, runtime: Runtime) -> None:
        """Make the prompts ready for a task: nothing, unless a method says otherwise."""

    def fit(self) -> training.Fit:
        """How prompts and head are trained."""
        raise NotImplementedError

    def preprocess(self, example: Example, training: bool) -> Batch:
        config = self.config
        return backbones.Preprocessor(self.vit.transform, config.augment, config.smallest_crop)(example, training)

    def learn(self, task: Task, runtime: Runtime) -> None:
        """Cross-entropy over the classes that the task teaches plus the penalty; others' rows get no gradient.

        Without augmentation queries are computed once a task, in one pass.
        """
        classifier.require_every_class(task)
        classes = classifier.extend_classes(self.classes, task)
        self.head.grow(len(classes), runtime, like=next(self.vit.parameters()))
        if not self.tasks:
            self.draw(runtime)
        self.begin(task, runtime)
        batches = ExampleBatches(
            task.train,
            self.preprocess,
            batch_size=self.config.batch_size,
            runtime=runtime,
            stage="train",
            training=True,
            drop_last=self.drop_last and len(task.train) >= self.config.batch_size,
        )
        known = self._queries(task, runtime) if self.config.augment == "none" else None
        taught = classifier.Taught(task)

        def loss(batch: Batch) -> dict[str, Tensor]:
            pixels = self.vit.transform.normalize(batch["image"])
            asked = self._asked(pixels) if known is None else known[batch["position"]]
            features, penalty = self.forward(pixels, asked, self.tasks)
            fits = F.cross_entropy(self.head(features)[:, taught.labels], taught.places(batch["label"]))
            return {"loss": fits + penalty, "cross_entropy": fits.detach()}

        head = {f"head.{name}": p for name, p in self.head.named_parameters()}
        trained = {**dict(self.prompts.named_parameters()), **head}
        training.fit(loss, trained, batches, self.fit(), runtime=runtime, stage="train")
        self.classes, self.tasks = classes, self.tasks + 1

    @torch.no_grad()
    def _asked(self, pixels: Tensor) -> Float[Tensor, "images dim"]:
        """Queries of normalized images: features of the network without prompts."""
        return self.vit.image_features(pixels)

    def _queries(self, task: Task, runtime: Runtime) -> Float[Tensor, "images dim"]:
        """Queries of all training images, in one pass, by position."""
        found = FrozenTower(self.vit).pass_over(task.train, batch_size=128, runtime=runtime, stage="queries")
        rows = found["feature"].new_zeros(len(task.train), self.vit.dim)
        return rows.index_copy_(0, found["position"], found["feature"]).to(self.vit.device)

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        own = slice(query.offset, query.offset + len(query.candidates))

        @torch.no_grad()
        def predict(batch: Batch) -> Tensor:
            pixels = self.vit.transform.normalize(batch["image"])
            features, _ = self.forward(pixels, self._asked(pixels), None)
            return classifier.widen(self.head(features)[:, own], classes=len(query.candidates))

        return predict

    def state_dict(self) -> dict[str, Any]:
        state = {"prompts": self.prompts.state_dict(), "head": self.head.state_dict()}
        return {**state, "classes": list(self.classes), "tasks": self.tasks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.prompts.load_state_dict(state["prompts"])
        self.head.load(state["head"])
        self.classes, self.tasks = list(state["classes"]), int(state["tasks"])

    def facts(self) -> dict[str, Any]:
        """Parameters beside the backbone, for the result card."""
        return {"extra_parameters": sum(p.numel() for m in (self.prompts, self.head) for p in m.parameters())}


def check_blocks(blocks: Mapping[str, Sequence[int]], vit: Vit) -> None:
    """Raise a RecipeError where a setting names a block that the network does not have."""
    for name, own in blocks.items():
        if wrong := [block for block in own if block >= vit.depth]:
            raise RecipeError(f"block {wrong[0]}", where=f"method.{name}", expected=f"blocks 0 to {vit.depth - 1}")


def require_one_process(runtime: Runtime, why: str) -> None:
    """Raise a RecipeError where a step's images lie in several processes."""
    if runtime.processes > 1:
        raise RecipeError(why, expected="one process", todo="Set method.batchwise=false, or use one process.")
