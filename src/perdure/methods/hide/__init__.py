"""HiDe-LLaVA: one low-rank update a task; fused in all blocks but the last, which mixes them by the question.

Guo et al., HiDe-LLaVA: Hierarchical Decoupling for Continual Instruction Tuning of Multimodal Large Language Model,
ACL 2025. A task's update is learned alone on the frozen model. At test the last block weighs the updates of all tasks
by how near the question's image and text, as a CLIP sees them, are to the tasks' means; the other blocks use one fused
update.

Needs: 24 GB GPU memory for a model of 7 B parameters in bf16.

Knows slots by layer, the means and the routing of a question. Layers and formulas are in `slots`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from perdure.errors import RecipeError
from perdure.families.instruction import seen_by_clip
from perdure.families.instruction.adapters import replace_linear
from perdure.families.instruction.settings import Tuning
from perdure.families.instruction.tuning import tune
from perdure.methods.hide.slots import SlotLinear, moved_mean, route
from perdure.models.clip import Clip
from perdure.models.language_model import LanguageModel
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of HiDe-LLaVA."""

    tuning: Tuning = Tuning()
    """How one task is learned; `rank` is a task's (published: 8), `alpha` over it the scale (published: 2)."""
    start_std: Annotated[float, Field(ge=0)] = 0.01
    """Standard deviation of A at the start; B starts at 0."""
    top_blocks: Annotated[int, Field(ge=0)] = 1
    """Last blocks in which the updates are weighted by the question."""
    fuse: Literal["factors", "products"] = "factors"
    """In the other blocks: sums of factors, with terms across tasks, as published; or the sum of the updates."""
    choose: Literal["soft", "hard"] = "soft"
    """Weights of the tasks, or the nearest task alone."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Of the weights."""
    official_batches: bool = False
    """As published: the questions of a batch share one set of weights, of their largest cosines."""
    official_means: bool = False
    """As published: a mean begins as a random vector that counts as one question."""


class Hide:
    """A language model whose linear layers carry a slot a task. State: slots, projector, means of image and text."""

    Config = Config
    answers = frozenset({"instruct"})
    not_merged = "each task has an update of its own"

    def __init__(self, config: Config, *, llm: LanguageModel, clip: Clip) -> None:
        self.config, self.llm, self.clip = config, llm, clip.requires_grad_(False)
        tuning = config.tuning
        llm.prepare(max_length=tuning.max_length, projector=tuning.projector_lr != 0)
        self.layers = replace_linear(
            llm, lambda base: SlotLinear(base, scale=tuning.alpha / tuning.rank, dropout=tuning.dropout)
        )
        """Slots by name in the language model."""
        if config.top_blocks > len(llm.blocks):
            raise RecipeError(
                f"top_blocks is {config.top_blocks}", where="method", expected=f"at most {len(llm.blocks)} blocks"
            )
        self.images = torch.zeros(0, clip.dim)
        """Mean image feature of each task."""
        self.texts = torch.zeros(0, clip.text_config.hidden_size)
        """Mean text feature of each task."""

    # -- examples ---------------------------------------------------------------------------------------

    def preprocess(self, example: Example, training: bool) -> Batch:
        return {**self.llm.preprocess(example, training), **seen_by_clip.seen(self.clip, example, training)}

    def collate(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        return seen_by_clip.collate(self.llm, items)

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Projected image features and the text tower's own, float32, not normalized."""
        images = self.clip.image_features(self.clip.transform.normalize(batch["route_image"]))
        return images.float(), self.clip.text_pooled(batch["route_ids"]).float()

    # -- learning ---------------------------------------------------------------------------------------

    def learn(self, task: Task, runtime: Runtime) -> None:
        if len(task.train) == 0:
            return
        config, place = self.config, len(self.images)
        images, texts = self._means(task, runtime)
        for name, layer in self.layers.items():
            layer.add(config.tuning.rank)
            noise = runtime.normal(tuple(layer.a[place].shape), "slot", name)
            layer.a[place].data.copy_(noise * config.start_std)
            layer.weights, layer.learning = None, place
        own = {n: p for n, p in self.parameters().items() if n.endswith(f".{place}")}
        tune(self.llm, own, task.train, self.loss, config.tuning, runtime=runtime)
        for parameter in own.values():
            parameter.requires_grad_(False)
        self.images, self.texts = torch.cat([self.images, images[None]]), torch.cat([self.texts, texts[None]])

    def loss(self, batch: Batch) -> Tensor:
        return self.llm.answer_loss(batch, mean=self.config.tuning.mean)

    def _means(self, task: Task, runtime: Runtime) -> tuple[Tensor, Tensor]:
        """Means over the task's questions, those without an image left out of the image's."""

        def encode(batch: Batch) -> dict[str, Tensor]:
            images, texts = self._features(batch)
            return {"image": images, "text": texts}

        found = seen_by_clip.features(self.clip, task.train, encode, runtime=runtime, stage="means")
        found["image"] = found["image"][found["has_image"]]
        means = []
        for kind in ("image", "text"):
            start = 0.1 * runtime.normal((found[kind].shape[1],), "mean", kind)
            count = 1 if self.config.official_means else 0
            means.append(moved_mean(start, count, found[kind])[0] if count + len(found[kind]) else 0 * start)
        return means[0], means[1]

    def _ready(self) -> None:
        """All layers answer: fused where they are not in the last blocks."""
        for layer in self.layers.values():
            layer.learning = None
            layer.fuse(self.config.fuse)

    # -- answering --------------------------------------------------------------------------------------

    def predictor(self, query: Query):
        self._ready()
        top = self._top() if len(self.images) > 1 else []
        if not top:
            return self.llm.answerer(self.config.tuning)

        def before(batch: Batch, rows: Tensor) -> None:
            weights = self._weights({name: value[rows] for name, value in batch.items() if name in seen_by_clip.SEEN})
            for layer in top:
                layer.weights = weights

        answer = self.llm.answerer(self.config.tuning, before=before)

        def predict(batch: Batch) -> list[str]:
            try:
                return answer(batch)
            finally:
                for layer in top:
                    layer.weights = None

        return predict

    @torch.no_grad()
    def _weights(self, batch: Batch) -> Tensor:
        """Of the tasks, question by question."""
        image, text = self._features(batch)
        weights = route(
            image,
            text,
            images=self.images.to(image.device),
            texts=self.texts.to(text.device),
            temperature=self.config.temperature,
            has_image=batch["has_image"].bool(),
            as_one=self.config.official_batches,
        )
        if self.config.choose == "hard":
            return torch.nn.functional.one_hot(weights.argmax(1), weights.shape[1]).to(weights)
        return weights

    def _top(self) -> list[SlotLinear]:
        """Layers of the last blocks."""
        chosen = {id(m) for block in list(self.llm.blocks)[-self.config.top_blocks :] for m in block.modules()}
        return [layer for layer in self.layers.values() if id(layer) in chosen] if self.config.top_blocks else []

    # -- state ------------------------------------------------------------------------------------------

    def parameters(self) -> dict[str, nn.Parameter]:
        """Factors of all slots: ``layers.0.mlp.up_proj.a.1`` of the second task."""
        return {
            f"{n}.{which}.{i}": p
            for n, m in self.layers.items()
            for which in "ab"
            for i, p in enumerate(getattr(m, which))
        }

    def export(self, folder: Path) -> str:
        """Slots, projector and means in one safetensors file: no other library has these layers."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "hide.safetensors"
        tensors = {**self.parameters(), **{f"projector.{n}": t for n, t in self.llm.projector_state().items()}}
        tensors |= {"means.images": self.images, "means.texts": self.texts}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
        return (
            f'from safetensors.torch import load_file\ntensors = load_file("{file}")  # a, b of each layer and task\n'
        )

    def state_dict(self) -> dict[str, Any]:
        state = {"slots": self.parameters(), "projector": self.llm.projector_state()}
        return {**state, "images": self.images, "texts": self.texts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.images, self.texts = state["images"], state["texts"]
        for layer in self.layers.values():
            for _ in range(len(layer.a), len(self.images)):
                layer.add(self.config.tuning.rank)
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.copy_(state["slots"][name])
                parameter.requires_grad_(False)
        self.llm.load_projector(state["projector"])

    def facts(self) -> dict[str, Any]:
        """Numbers kept for the tasks, for the result card."""
        return {"extra_parameters": sum(p.numel() for p in self.parameters().values())}
