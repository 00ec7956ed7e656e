"""One low-rank update a task on the frozen model; each question is answered with that of the nearest task.

Nearest by the mean cosine of the question's image and text, as a CLIP sees them, with the tasks' means: the simplest of
mixtures of task experts (MR-LoRA, Zhao et al. 2025, routes by a language model and examples that it keeps). Nothing is
forgotten while the choice is right; `task_accuracy` says how often it is.

Needs: 24 GB GPU memory for a model of 7 B parameters in bf16, 1.3 GB memory for each task.

Knows updates by task, means, and the choice for a question. Does not know data sets or scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from perdure.families.instruction import seen_by_clip
from perdure.families.instruction.adapters import Adapters
from perdure.families.instruction.settings import Tuning
from perdure.families.instruction.tuning import copies, tune
from perdure.metrics import Inferred
from perdure.models.clip import Clip
from perdure.models.language_model import LanguageModel
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of routed updates."""

    tuning: Tuning = Tuning()
    """How one task is learned."""
    threshold: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Questions less similar to every task are answered by the model as it was before the first; none: never."""


class LoraRouter:
    """A language model with an update and a projector for each task, and the tasks' mean features."""

    Config = Config
    answers = frozenset({"instruct"})
    not_merged = "each task has an update of its own"

    def __init__(self, config: Config, *, llm: LanguageModel, clip: Clip) -> None:
        self.config, self.llm, self.clip = config, llm, clip.requires_grad_(False)
        self.adapters = Adapters(llm, config.tuning)
        self.first = copies(llm.projector_state())
        """The projector before the first task."""
        self.updates: list[dict[str, Any]] = []
        """Of each task: its name, its factors and its projector."""
        self.images = torch.zeros(0, clip.dim)
        """Mean image feature of each task; zeros where it has no image."""
        self.texts = torch.zeros(0, clip.dim)
        """Mean text feature of each task."""

    def preprocess(self, example: Example, training: bool) -> Batch:
        return {**self.llm.preprocess(example, training), **seen_by_clip.seen(self.clip, example, training)}

    def collate(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        return seen_by_clip.collate(self.llm, items)

    def learn(self, task: Task, runtime: Runtime) -> None:
        if len(task.train) == 0:
            return
        images, texts = self._means(task, runtime)
        self.llm.load_projector(self.first)
        self.adapters.start(runtime)
        parameters = self.adapters.parameters()
        tune(self.llm, parameters, task.train, self.loss, self.config.tuning, runtime=runtime)
        self.adapters.save_task(task, runtime)
        self.adapters.hold()
        own = {"name": task.name, "factors": copies(parameters), "projector": copies(self.llm.projector_state())}
        self.updates = [*self.updates, own]
        self.images, self.texts = torch.cat([self.images, images[None]]), torch.cat([self.texts, texts[None]])

    def loss(self, batch: Batch) -> Tensor:
        return self.llm.answer_loss(batch, mean=self.config.tuning.mean)

    def _means(self, task: Task, runtime: Runtime) -> tuple[Tensor, Tensor]:
        """Of the task's questions; summed in float64."""

        def encode(batch: Batch) -> dict[str, Tensor]:
            image, text = self._features(batch)
            return {"image": image, "text": text}

        found = seen_by_clip.features(self.clip, task.train, encode, runtime=runtime, stage="router")
        image, text = found["image"][found["has_image"]].double(), found["text"].double()
        return (image.sum(0) / max(len(image), 1)).float(), text.mean(0).float()

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features of images and texts, projected, of length 1."""
        images = self.clip.image_features(self.clip.transform.normalize(batch["route_image"]))
        texts = self.clip.text_features(batch["route_ids"])
        return F.normalize(images.float(), dim=1), F.normalize(texts.float(), dim=1)

    @torch.no_grad()
    def _chosen(self, batch: Batch) -> Int[Tensor, " questions"]:
        """The task of each question, the earliest of those alike; -1 below the threshold."""
        image, text = self._features(batch)
        return nearest(
            image,
            text,
            images=self.images.to(image.device),
            texts=self.texts.to(text.device),
            has_image=batch["has_image"].bool(),
            threshold=self.config.threshold,
        )

    def predictor(self, query: Query):
        if not self.updates:
            return self.llm.answerer(self.config.tuning)
        chosen = torch.zeros(0, dtype=torch.long)

        def group(batch: Batch) -> Tensor:
            nonlocal chosen
            chosen = self._chosen(batch)
            return chosen

        answer = self.llm.answerer(
            self.config.tuning, before=lambda _, rows: self._use(int(chosen[rows[0]])), group=group
        )
        names = [update["name"] for update in self.updates]

        def predict(batch: Batch) -> Inferred:
            texts = answer(batch)
            return Inferred(texts, [names[i] if i >= 0 else "" for i in chosen.tolist()])

        return predict

    def _use(self, task: int) -> None:
        """Answer with a task's update; -1: with none."""
        if task < 0:
            self.adapters.enable(False)
            self.llm.load_projector(self.first)
        else:
            self.adapters.load_factors(self.updates[task]["factors"])
            self.llm.load_projector(self.updates[task]["projector"])

    def export(self, folder: Path) -> str:
        """A PEFT folder for each task, and the tasks' means: plain peft answers with one of them."""
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(len(self.updates)):
            self._use(i)
            self.adapters.save(folder / "adapters" / f"{i + 1:02}")
        means = {"images": self.images.contiguous(), "texts": self.texts.contiguous()}
        names = {update["name"]: str(i) for i, update in enumerate(self.updates)}
        save_file(means, folder / "router.safetensors", metadata=names)
        kind, base = type(self.llm.model).__name__, self.adapters.base
        return (
            f"from peft import PeftModel\nfrom transformers import {kind}\n"
            f'model = {kind}.from_pretrained("{base}")  # as it was before the first task\n'
            f'model = PeftModel.from_pretrained(model, "{folder}/adapters/01")  # the first task\'s update\n'
        )

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "images": self.images, "texts": self.texts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = [dict(update) for update in state["updates"]]
        self.images, self.texts = state["images"], state["texts"]

    def facts(self) -> dict[str, Any]:
        """Numbers kept for the tasks, for the result card."""
        kept = [t for u in self.updates for part in ("factors", "projector") for t in u[part].values()]
        return {"extra_parameters": sum(t.numel() for t in kept)}


def nearest(
    image: Float[Tensor, "questions dim"],
    text: Float[Tensor, "questions dim"],
    *,
    images: Float[Tensor, "tasks dim"],
    texts: Float[Tensor, "tasks dim"],
    has_image: Tensor,
    threshold: float | None = None,
) -> Int[Tensor, " questions"]:
    """The task with the highest mean cosine of image and text; of one of both where the question or the task has no
    image. Ties: the earliest. -1 where no task reaches the threshold."""
    by_image, by_text = (
        F.normalize(own, dim=1) @ F.normalize(means, dim=1).T for own, means in ((image, images), (text, texts))
    )
    both = has_image[:, None] & images.any(dim=1)[None]
    similar = torch.where(both, (by_image + by_text) / 2, by_text)
    best = similar.max(dim=1)
    earliest = (similar == best.values[:, None]).int().argmax(dim=1)
    return earliest if threshold is None else torch.where(best.values < threshold, -1, earliest)
