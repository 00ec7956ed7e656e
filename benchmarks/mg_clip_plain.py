"""MG-CLIP by the published schedule: what `benchmarks/mg_clip.py` compares ours with.

Every training step encodes the prompts of all classes seen at all 77 positions. Every batch of the pass for the class
means encodes the prompts seen and those of all classes, every batch of the visual classifier's epochs those seen, and
drops them; every one of these epochs runs the image tower again. Every evaluation batch encodes the prompts seen and
those of all classes. Attention is two products and a softmax. Losses, orders and optimizers are those of
`perdure.methods.mg_clip`. Knows torch and Hugging Face's CLIPModel. Saves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from perdure.families.clip import classifier
from perdure.layers import lora
from perdure.loading import ExampleBatches
from perdure.methods.mg_clip import Config
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Example, Task


class Plain:
    """MG-CLIP without any saving: the same losses, orders and optimizers, written out."""

    def __init__(self, clip: Clip, config: Config, runtime: Runtime, everything: Sequence[str]) -> None:
        self.clip, self.config, self.runtime, self.everything = clip, config, runtime, everything
        if clip.dtype == torch.float32:  # its softmax is float32 whatever the rest is
            clip.model.set_attn_implementation("eager")
        lora.add_clip_lora(clip.model, r=config.lora_rank)
        self.rows = torch.zeros(0, clip.dim, dtype=clip.dtype)
        self.names: list[str] = []

    def images(self, batch: Any) -> Tensor:
        pixels = self.clip.transform.normalize(batch["image"]).to(self.clip.dtype)
        return F.normalize(self.clip.model.get_image_features(pixels).pooler_output, dim=1)

    def texts(self, names: Sequence[str] = ()) -> Tensor:
        """Of these classes, or of those seen so far."""
        ids = self.clip.tokenize([self.config.template.format(name) for name in names or self.names])
        return F.normalize(self.clip.model.get_text_features(ids).pooler_output, dim=1)

    def batches(self, examples: Sequence[Example], stage: str, *, training: bool, size: int = 0) -> ExampleBatches:
        return ExampleBatches(
            examples,
            classifier.Preprocessor(self.clip.transform),
            batch_size=size or self.config.batch_size,
            runtime=self.runtime,
            stage=stage,
            training=training,
        )

    def learn(self, task: Task) -> None:
        self.names = [*self.names[: task.offset], *task.candidates]
        with lora.without_lora(self.clip.model), torch.no_grad():
            for batch, _ in self.batches(task.train, "gap", training=False).epoch(0):
                self.clip.scale * self.images(batch) @ self.texts().T  # the logits of the gap's log line
        self.train(task)
        self.visual(task)

    def train(self, task: Task) -> None:
        parameters = list(lora.lora_parameters(self.clip.model).values())
        optimizer = torch.optim.Adam(parameters, lr=self.config.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, T_max=int(self.config.epochs), eta_min=0.01 * self.config.lr
        )
        for epoch in range(int(self.config.epochs)):
            for batch, _ in self.batches(task.train, "lora", training=True).epoch(epoch):
                logits = self.clip.scale * self.images(batch) @ self.texts().T
                loss = F.cross_entropy(logits[:, task.offset :], batch["label"] - task.offset)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            schedule.step()

    def visual(self, task: Task) -> None:
        found, labels = [], []
        with torch.no_grad():
            for batch, _ in self.batches(task.train, "means", training=False).epoch(0):
                found.append(self.images(batch))
                self.texts(), self.texts(self.everything)
                labels.append(batch["label"])
        features, label = torch.cat(found), torch.cat(labels)
        means = torch.stack([features[label == y].mean(0) for y in classifier.labels_of(task)])
        weight = torch.cat([self.rows[: task.offset], means]).requires_grad_()
        lr, size = self.config.visual_lr, self.config.visual_batch_size
        optimizer = torch.optim.Adam([weight], lr=lr)
        steps = self.config.visual_epochs * -(-len(task.train) // size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=0.01 * lr)
        for epoch in range(self.config.visual_epochs):
            for batch, _ in self.batches(task.train, "visual", training=True, size=size).epoch(epoch):
                with torch.no_grad():
                    features = self.images(batch)
                    self.texts()
                scores = F.normalize(features, dim=1) @ F.normalize(weight, dim=1).T
                loss = F.cross_entropy(scores[:, task.offset :], batch["label"] - task.offset)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        self.rows = weight.detach()

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Example]) -> Tensor:
        scores = []
        for batch, _ in self.batches(examples, "test", training=False).epoch(0):
            features = self.images(batch)
            self.texts(self.everything)
            text = (self.clip.scale * features @ self.texts().T).softmax(1).softmax(1)
            visual = (features @ F.normalize(self.rows, dim=1).T).softmax(1)
            scores.append((text + 4 * visual) / 5)
        return torch.cat(scores)
