"""RLCF for retrieval: tune CLIP to each image or text that is asked with, by the feedback of a frozen CLIP.

Zhao et al., Test-Time Adaptation with CLIP Reward for Zero-Shot Generalization in Vision-Language Models, ICLR 2024.
A few policy-gradient steps on the best items of the gallery, rewarded by their CLIPScore; then the whole gallery is
ranked, and the weights are put back. An image tunes the image tower, a text all the rest.

Needs: 8 GB GPU memory for ViT-B/16 with ViT-L/14 as reward.

Knows settings and roles. Episodes are in `perdure.families.test_time`, the reward in `perdure.families.clip.clipscore`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from perdure.errors import DataError
from perdure.families.clip import clipscore
from perdure.families.test_time import objectives, settings
from perdure.families.test_time.losses import Objective
from perdure.families.test_time.prompt_tuning import Steps
from perdure.families.test_time.retrieval import Modality, QueryTuner
from perdure.images import NamedImage
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


@dataclass(frozen=True, kw_only=True)
class Config(settings.Rewarded, settings.Carried, settings.Steps):
    """Settings of RLCF for retrieval; the defaults are the paper's for texts as queries."""

    objective: Literal["policy_gradient", "kd", "ensemble"] = "policy_gradient"
    """`kd`: imitate the reward models' logits. `ensemble`: adapt nothing, average all models' cosines."""
    tune: Literal["query", "gallery"] = "query"
    """Side whose tower moves; `gallery` encodes it anew in every step, so it is for small galleries."""
    steps: Annotated[int, Field(ge=0)] = 8
    """Optimizer steps a query; 0 is zero-shot."""
    samples: Annotated[int, Field(ge=1)] = 12
    """Items sampled from the gallery (K) for a text (paper: 12)."""
    samples_image: Annotated[int, Field(ge=1)] | None = None
    """The same for an image (paper: 20 on COCO, 16 on Flickr30k); null: `samples`."""
    sampling: Literal["top", "distribution"] = "top"
    """`top`: the K most probable, as in the published code. `distribution`: drawn from the prediction."""
    baseline: Literal["image", "none"] = "image"
    """Subtracted from the scores: the mean over a query's samples, or nothing."""
    lr: Annotated[float, Field(ge=0)] = 1e-6
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Of AdamW."""
    momentum: Annotated[float, Field(ge=0, le=1)] | None = None
    """Carry knowledge from query to query: slow weights keep this share (paper: 0.9998); null: begin anew."""
    update_every: Annotated[int, Field(ge=1)] = 64
    """With momentum: queries after which episodes start from the slow weights."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Items of the gallery encoded at a time. Moves no number."""
    at_once: Annotated[int, Field(ge=1)] = 1
    """Queries adapted side by side, each with weights of its own. Moves no number; faster on graphics cards and for
    small towers, and takes that many times the memory. With momentum or a tuned gallery queries go one by one."""


class RlcfRetrieval:
    """Each query of evaluation brings a gallery; each example begins with the given weights."""

    Config = Config
    answers = frozenset({"retrieve"})
    not_updatable = "it learns nothing from training data"
    adapts = True

    def __init__(
        self, config: Config, *, policy: Clip, reward: Clip, reward2: Clip | None = None, reward3: Clip | None = None
    ) -> None:
        models, weights = clipscore.ensemble(
            [reward, reward2, reward3], mode=config.ensemble, confidences=config.reward_confidences
        )
        self.config, self.policy = config, policy
        self.reward = clipscore.ClipReward(models, weights, like=policy)
        policy.requires_grad_()  # which side moves depends on what is asked with
        self.carries_state = config.momentum is not None

    def preprocess(self, example: Example, training: bool) -> Batch:
        if "text" in example.inputs:
            text = example.inputs["text"]
            return {"ids": self.policy.tokenize([text], truncate="drop-eot")[0], "text": text}
        return {"image": self.policy.transform.pixels(example.inputs["image"])}

    def learn(self, task: Task, runtime: Runtime) -> None:
        """Nothing is learned."""

    @torch.no_grad()
    def index(self, query: Query) -> dict[str, Float[Tensor, "gallery dim"]]:
        """Features of the query's gallery by all models, for `predictor` to take in place of encoding it again.

        Raises:
            DataError: the gallery's side is tuned, so that nothing of it stays.
        """
        if self.config.tune == "gallery":
            raise DataError("a gallery that is tuned has no features to keep", todo="Leave the index out.")
        rewarding: list[list[Tensor]] = []
        encode = (
            self.policy.image_features if isinstance(query.candidates[0], NamedImage) else self.policy.text_features
        )
        own = torch.cat([F.normalize(encode(part), dim=1) for part in self._gallery(query, rewarding)])
        return {"policy": own, **{f"reward{i}": torch.cat(parts) for i, parts in enumerate(zip(*rewarding))}}

    def predictor(self, query: Query, features: Mapping[str, Tensor] | None = None):
        config = self.config
        asked_with: Modality = "text" if query.candidates and isinstance(query.candidates[0], NamedImage) else "image"
        samples = config.samples_image if asked_with == "image" and config.samples_image else config.samples
        if not query.candidates:
            raise DataError("the gallery is empty", expected="images or texts to search in")
        if config.objective == "policy_gradient" and config.steps:
            objectives.require_samples(samples, len(query.candidates), config.sampling)
        rewarding: list[list[Tensor]] = []
        count = 0 if config.objective == "ensemble" else config.steps
        tuner = QueryTuner(
            self.policy,
            self._gallery(query, rewarding) if features is None else (),
            Steps(count=count, lr=config.lr, weight_decay=config.weight_decay, eps=config.eps),
            query=asked_with,
            tune=config.tune,
            momentum=config.momentum,
            update_every=config.update_every,
            update_share=config.update_share,
            chunk=config.chunk,
            features=None if features is None else features["policy"],
        )
        gallery = [torch.cat(parts) for parts in zip(*rewarding)]
        if features is not None:
            gallery = [features[f"reward{i}"].to(self.policy.device) for i in range(len(features) - 1)]
        settings = objectives.Reinforce(
            samples=samples, baseline=config.baseline, amplify=config.amplify, sampling=config.sampling
        )

        at_once = config.at_once if config.tune == "query" and config.momentum is None else 1

        def predict(batch: Batch) -> Tensor:
            if asked_with == "text" and "image" in batch:
                return self._alike(batch["image"], tuner.features)
            rows = []
            for begin in range(0, len(batch["seed"]), at_once):
                items, asked = self._asked(batch, slice(begin, begin + at_once))
                if config.objective == "ensemble":
                    rows.append(self._averaged(tuner, items, asked, gallery))
                    continue
                seeds = batch["seed"][begin : begin + at_once].tolist()
                rows.append(tuner.logits(items, self._objective(asked, gallery, settings, seeds)))
            return torch.cat(rows)

        return predict

    @torch.no_grad()
    def _alike(self, pixels: Tensor, gallery: Tensor) -> Float[Tensor, "queries gallery"]:
        """An image asked among images: as similar as the policy finds them. CLIPScore rewards no such pair."""
        features = self.policy.image_features(self.policy.transform.normalize(pixels))
        return self.policy.scale * F.normalize(features, dim=1) @ gallery.T

    def _gallery(self, query: Query, rewarding: list[list[Tensor]]) -> Iterator[Tensor]:
        """The policy's inputs, part by part; the reward models' features are kept on the way."""
        candidates = query.candidates
        for begin in range(0, len(candidates), self.config.chunk):
            part = candidates[begin : begin + self.config.chunk]
            if isinstance(part[0], NamedImage):
                raw = torch.stack([self.policy.transform.pixels(getattr(one, "image", one)) for one in part])
                pixels = self.policy.transform.normalize(raw.to(self.policy.device))
                rewarding.append(self.reward.encode_images(pixels))
                yield pixels
            else:
                rewarding.append(self.reward.encode_texts(part))
                ids = self.policy.tokenize(part, truncate="drop-eot")
                yield self.policy.cut(ids).to(self.policy.device)

    def _asked(self, batch: Batch, some: slice) -> tuple[Tensor, list[Tensor]]:
        """Some examples as the policy takes them, and their features by the reward models."""
        if "ids" in batch:
            return batch["ids"][some], self.reward.encode_texts(batch["text"][some])
        pixels = self.policy.transform.normalize(batch["image"][some])
        return pixels, self.reward.encode_images(pixels)

    def _objective(
        self, asked: list[Tensor], gallery: list[Tensor], settings: objectives.Reinforce, seeds: list[int]
    ) -> Objective:
        if self.config.objective == "kd":
            return objectives.imitate("kd", self.reward.logits(asked, gallery)[:, None])
        return objectives.reinforce(self.reward.table(asked, gallery)[:, None], settings, seeds=seeds)

    @torch.no_grad()
    def _averaged(
        self, tuner: QueryTuner, items: Tensor, asked: list[Tensor], gallery: list[Tensor]
    ) -> Float[Tensor, "queries gallery"]:
        """Mean cosine of the policy and the reward models."""
        own = tuner.zero_shot(items) / self.policy.scale
        return torch.stack([own, *(f @ g.T for f, g in zip(asked, gallery, strict=True))]).mean(0)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass
