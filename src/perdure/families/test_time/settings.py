"""Settings that test-time methods share: the step, the views, and what is carried from image to image.

Knows numbers only; imports no torch, so that recipes can be checked quickly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from perdure.settings.config import Template


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The optimizer's steps of an episode."""

    steps: Annotated[int, Field(ge=0, le=100_000)] = 3
    """Optimizer steps an image; 0 is zero-shot."""
    lr: Annotated[float, Field(ge=0)] = 1e-05
    """Learning rate (AdamW)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0005
    """Decoupled weight decay."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Views of a test image."""

    views: Annotated[int, Field(ge=1)] = 64
    """Views of an image, the plain one included."""
    selection: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the views that is kept: those of least entropy."""
    augment: Literal["crop", "hard"] = "crop"
    """Random crop and flip; `hard` adds color jitter, grey and blur."""
    augmix: bool = False
    """AugMix on top (paper: for the fine-grained sets, not for ImageNet)."""
    answer: Literal["plain", "confident"] = "plain"
    """Answer from the plain view, or from the mean over the kept views."""

    def bytes_needed(self) -> int:
        """The views of one image in float32, at the size of the smallest model."""
        return 4 * 3 * 32 * 32 * self.views


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What an episode hands on to the next."""

    momentum: Annotated[float, Field(ge=0, le=1)] | None = None
    """Carry knowledge from sample to sample: slow weights keep this share (paper: 0.9998); null: begin anew."""
    update_every: Annotated[int, Field(ge=1)] = 64
    """With momentum: samples after which episodes start from the slow weights."""
    update_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """With momentum: share of the slow weights in that start; the rest is the pretrained weights."""


@dataclass(frozen=True, kw_only=True)
class Encoder(Carried, Views, Steps):
    """An image tower that adapts."""

    template: Template = "a photo of a {}."
    """Prompt of a class; `{}` stands for its name. The published scripts say `a_photo_of_a {}.`"""
    clean_names: bool = True
    """Put spaces for the underscores of class names."""
    tune: Literal["all", "norm"] = "all"
    """Parameters of the image tower that move: all, or those of its normalisation layers."""
    prior_strength: Annotated[float, Field(ge=0)] | None = None
    """For ResNets: weigh running statistics of batch norms by s / (s + 1) while adapting; null: batch statistics."""
    at_once: Annotated[int, Field(ge=1)] = 1
    """Images adapted side by side, each with weights, gradients and two moments of its own: four times the tuned
    weights in memory an image. Moves no number. With momentum, and for ResNets, always 1."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Views encoded at a time. Moves no number."""


@dataclass(frozen=True, kw_only=True)
class Prompt(Views, Steps):
    """A prompt's context that adapts."""

    context: str = "a photo of a"
    """Words that the context begins as. `[CLS]` among them puts the class name there."""
    context_file: Path | None = None
    """CoOp's or CoCoOp's `.pth.tar`, to begin with instead."""
    random_context: Annotated[int, Field(ge=0)] = 0
    """So many random vectors to begin with instead (drawn from the run's seed); 0: the words."""
    position: Literal["end", "middle", "front"] = "end"
    """Where the class name stands."""
    learned_names: bool = False
    """Put a vector of its own in place of each class's name and tune it with the context. It is drawn from the run's
    seed and the name (spread 0.02), so that without a step answers are random."""
    at_once: Annotated[int, Field(ge=1)] = 4
    """Images adapted side by side, each with a context of its own. Moves no number."""
    chunk: Annotated[int, Field(ge=1)] = 256
    """Prompts, or views, encoded at a time. Moves no number."""


@dataclass(frozen=True, kw_only=True)
class Rewarded:
    """How answers are sampled and rewarded by CLIPs."""

    samples: Annotated[int, Field(ge=1)] = 3
    """Classes sampled for each view (K)."""
    sampling: Literal["top", "distribution"] = "top"
    """`top`: the K most probable classes, as in the published code. `distribution`: drawn from the prediction."""
    baseline: Literal["image", "batch", "none"] = "image"
    """Subtracted from the scores: their mean over a view's samples, over all views, or nothing."""
    amplify: bool = False
    """Divide rewards by their standard deviation."""
    ensemble: Literal["weighted", "mean"] = "weighted"
    """How several reward models are combined: by confidence, or all alike."""
    reward_confidences: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """One number a reward model; empty: the paper's, by architecture."""


@dataclass(frozen=True, kw_only=True)
class Continual:
    """How long what was adapted lasts."""

    continual: bool = False
    """Carry what was adapted from test set to test set (continual test-time adaptation); false: each begins anew."""


@dataclass(frozen=True, kw_only=True)
class Prompted:
    """Texts of the classes of a zero-shot classifier that does not adapt them."""

    template: Template = "a photo of a {}."
    """Prompt of a class; `{}` stands for its name."""
    templates: Literal["one", "tip7", "imagenet80"] = "one"
    """`template` alone, or the mean feature of Tip-Adapter's 7 or CLIP's 80 templates for ImageNet."""
    clean_names: bool = True
    """Put spaces for the underscores of class names."""


@dataclass(frozen=True, kw_only=True)
class FewViews:
    """Views of a test image, by default the plain one alone."""

    views: Annotated[int, Field(ge=1)] = 1
    """Views of an image, the plain one included."""
    selection: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of several views that is kept: those of least entropy."""
    augment: Literal["crop", "hard"] = "crop"
    """Random crop and flip; `hard` adds color jitter, grey and blur."""
    augmix: bool = False
    """AugMix on top."""

    def bytes_needed(self) -> int:
        """The views of one image in float32, at the size of the smallest model."""
        return 4 * 3 * 32 * 32 * self.views


@dataclass(frozen=True, kw_only=True)
class Batches(Continual, Prompted):
    """Batches of test images that change weights."""

    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images of a batch. Answers depend on it: `evaluate.batch_size` is not asked."""
    steps: Annotated[int, Field(ge=0)] = 1
    """Steps a batch."""
    episodic: bool = False
    """Begin anew with each batch."""


@dataclass(frozen=True, kw_only=True)
class NormTuning(Batches):
    """Norm layers that move."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with momentum, or Adam."""
    lr: Annotated[float, Field(ge=0)] | None = None
    """Learning rate; null: 0.001 with Adam, else SAR's rule: 0.001 / 64 a batch's image with layer norms, 0.00025
    without (in batches under 32: 0.00025 / 32 an image)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD."""
    statistics: Literal["batch", "stored"] = "batch"
    """Of batch norms: the test batch's, or those of training."""


def views_faults(config: FewViews) -> Iterator[tuple[str, str]]:
    """What is wrong with these settings, as `Config.faults` yields it."""
    if config.views > 1 and int(config.views * config.selection) < 1:
        yield "selection", f"{config.selection:g} of {config.views} views is less than one view"
