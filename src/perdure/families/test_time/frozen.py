"""Test-time methods that look at frozen image features alone: one pass of the image tower serves them all.

Knows a CLIP that does not change, its views of an image and its class features, and the state that a method carries
from image to image. Does not know what a method makes of features. `OnFeatures` is the method without its own part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from perdure.errors import DataError, RecipeError
from perdure.families.clip import classifier, frozen_tower
from perdure.families.clip.templates import IMAGENET_80, TIP_7
from perdure.families.test_time import objectives, views
from perdure.families.test_time.carrying import Carries
from perdure.files import text_files
from perdure.models.clip import Clip
from perdure.runtime import Runtime
from perdure.types import Batch, Example, Query, Task


class OnFeatures(Carries):
    """A test-time method on frozen features: its own part is `begin` and `answer`.

    ``encode(batch) -> {"feature": [images views dim]}`` (of one view ``[images dim]``) is kept apart, so that a run can
    take the features from a cache (`perdure.features`) and hand them to the predictor in place of images.
    """

    carries_state = True
    scores_are = "logits"
    encodes: tuple[str, ...] = ("feature",)
    """What `encode` makes."""

    def __init__(self, config: Any, clip: Clip) -> None:
        if hasattr(config, "template"):
            classifier.check_template(config.template)
        self.config, self.clip = config, clip.requires_grad_(False)
        self.carried: Any = None
        """What the present test set has left so far; None before the first."""
        self.candidates: tuple[str, ...] = ()

    def begin(self, query: Query, texts: Float[Tensor, "classes dim"]) -> Any:
        """The state before the first image: an object with `state_dict` and `load_state_dict`, or None."""
        raise NotImplementedError

    def answer(
        self, state: Any, rows: Mapping[str, Tensor], texts: Float[Tensor, "classes dim"]
    ) -> Float[Tensor, "images classes"]:
        """Scores of images in their order, from what `encode` made of them."""
        raise NotImplementedError

    def preprocess(self, example: Example, training: bool) -> Batch:
        return views.preprocess_as(self.config, example, self.clip.transform)

    def learn(self, task: Task, runtime: Runtime) -> None:
        """Nothing is learned."""

    @torch.no_grad()
    def encode(self, batch: Batch) -> dict[str, Float[Tensor, "images *views dim"]]:
        """Features of the views of a batch of `preprocess`: of unit length, but those of one view alone, which are as
        every frozen tower gives them."""
        if self.config.views == 1:
            return frozen_tower.FrozenTower(self.clip).encode({"image": batch["views"][:, 0]})
        return {"feature": encode_views(self.clip, batch["views"])}

    def encoder(self) -> dict[str, Any]:
        """All that `encode` depends on beside the images: the key of a feature cache."""
        return encoder_key(self.clip, self.config)

    def texts(self, candidates: tuple[str, ...]) -> Float[Tensor, "classes dim"]:
        """Unit features of the classes."""
        return mean_texts(self.clip, self.config, candidates)

    def predictor(self, query: Query) -> Callable[[Batch], Tensor]:
        objectives.require_candidates(query.candidates)
        texts = whole(self.texts(query.candidates))
        if self.carried is None or not getattr(self.config, "continual", False):
            self.carried, self.candidates = self.begin(query, texts), query.candidates
        elif self.candidates != query.candidates:
            raise RecipeError(
                "the test sets have different classes, and what was adapted is told apart by class",
                where="method.continual",
                expected="false, or sets with the same classes",
            )

        @torch.no_grad()
        def predict(batch: Batch) -> Tensor:
            rows = batch if "feature" in batch else self.encode(batch)
            rows = {name: rows[name].to(texts) for name in self.encodes}
            if self.config.views == 1:
                rows["feature"] = F.normalize(rows["feature"], dim=1)[:, None]
            with torch.autocast(texts.device.type, enabled=False):  # products of features need all digits
                return self.answer(self.carried, rows, texts)

        return predict

    def state_dict(self) -> dict[str, Any]:
        if self.carried is None or not getattr(self.config, "continual", False):
            return {}
        return {"candidates": list(self.candidates), "carried": self.stream_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            query = Query(kind="classify", candidates=tuple(state["candidates"]))
            self.carried, self.candidates = None, query.candidates
            self.carried = self.begin(query, self.texts(query.candidates))
            self.carried.load_state_dict(state["carried"])


@torch.no_grad()
def encode_views(clip: Clip, pixels: Tensor) -> Float[Tensor, "images views dim"]:
    """Unit features of views [images views 3 size size] as `views.preprocess` gives them, `CHUNK` at a time."""
    flat = pixels.flatten(0, 1)
    parts = [clip.image_features(clip.transform.normalize(part)) for part in flat.split(CHUNK)]
    return F.normalize(torch.cat(parts), dim=-1).view(*pixels.shape[:2], -1)


CHUNK = 256
"""Views encoded at a time."""


def mean_texts(
    clip: Clip,
    config: Any,
    candidates: tuple[str, ...],
    descriptions: Mapping[str, list[str]] | None = None,
) -> Float[Tensor, "classes dim"]:
    """Unit features of the classes, averaged over a config's templates, and over descriptions of each where given.

    Raises:
        DataError: a class has no description.
    """
    sentences = {"one": (config.template,), "tip7": TIP_7, "imagenet80": IMAGENET_80}[config.templates]
    if descriptions is not None:
        return torch.cat([_described(clip, config, sentences, name, descriptions) for name in candidates])
    total = sum(
        classifier.encode_prompts(clip, classifier.prompts(sentence, candidates, clean=config.clean_names))
        for sentence in sentences
    )
    assert isinstance(total, Tensor)
    return F.normalize(whole(total), dim=-1)


def whole(features: Tensor) -> Tensor:
    """Features in float32 at least, also where autocast made them: what is done with them needs all digits."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def _described(
    clip: Clip, config: Any, sentences: tuple[str, ...], name: str, descriptions: Mapping[str, list[str]]
) -> Float[Tensor, "1 dim"]:
    said = descriptions.get(name)
    if not said:
        raise DataError(f"no description of {name!r}", where="method.descriptions", expected="one of every class")
    words = name.replace("_", " ") if config.clean_names else name
    texts = [sentence.format(f"{words}, {one}") for sentence in sentences for one in said]
    ids = clip.cut(clip.tokenize(texts, truncate="keep-eot")).to(clip.device)
    with torch.no_grad():
        features = F.normalize(torch.cat([clip.text_features(part) for part in ids.split(256)]), dim=-1)
    return F.normalize(features.mean(0, keepdim=True), dim=-1)


def read_descriptions(path: Path | None) -> dict[str, list[str]] | None:
    """Class name -> descriptions, from a JSON file.

    Raises:
        DataError: not such a file.
    """
    if path is None:
        return None
    found = text_files.read_json(path.expanduser(), error=DataError)
    fits = isinstance(found, dict) and all(
        isinstance(said, list) and all(isinstance(one, str) for one in said) for said in found.values()
    )
    if not fits:
        raise DataError("holds something else", where=str(path), expected="an object: class name -> list of texts")
    return found


def encoder_key(clip: Clip, config: Any) -> dict[str, Any]:
    """What the features of views depend on beside the images and, where views are drawn, the run's seed."""
    key = frozen_tower.tower_key(clip)
    drawn = {"views": config.views, "augment": config.augment, "augmix": config.augmix, "random": True}
    return key if config.views == 1 else key | drawn
