"""The two frozen towers, and what is the same for all methods over them.

Knows towers, the readout's settings, the modes of the published code and the cache. Does not know batches or methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from perdure.families.audio_visual import readout, towers
from perdure.families.audio_visual.front_end_cache import FrontEndCache
from perdure.families.audio_visual.inputs import Problem, Statistics, statistics_of
from perdure.families.audio_visual.readout import Readout
from perdure.runtime import Runtime

if TYPE_CHECKING:
    from perdure.models.clap import Clap
    from perdure.models.clip import Clip


@dataclass(frozen=True, kw_only=True)
class Modes:
    """In which modes the published code runs, against which those of this library are the usual ones."""

    audio_statistics: bool = False
    """Normalize mel bands by the statistics of the batch, in training and at test."""
    head_modes: bool = False
    """Heads stay in training mode at test (dropout, batch statistics)."""
    augmentation: bool = False
    """SpecAugment and stochastic depth of the audio tower, in training and at test."""
    mixup: bool = False
    """Mix spectrograms of segmentation tasks, in training and at test."""


@dataclass(frozen=True, kw_only=True)
class System:
    """Two frozen towers and the settings of all that is the same for all methods over them."""

    clip: Clip
    clap: Clap
    readout: Readout = field(default_factory=Readout)
    modes: Modes = field(default_factory=Modes)
    pixel_statistics: Literal["imagenet", "clip"] = "imagenet"
    cache_gigabytes: float = 0.0
    """Space for what the front ends make of videos; 0: no cache."""
    cache_folder: Path | None = None
    """None: in the run's folder."""
    cache: FrontEndCache | None = field(init=False, default=None)
    _texts: dict[Any, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        towers.check_pair(self.clip, self.clap)
        if self.cache_gigabytes:
            facts = _facts(self.clip, self.clap, self.statistics)
            cache = FrontEndCache(self.cache_folder, gigabytes=self.cache_gigabytes, facts=facts)
            object.__setattr__(self, "cache", cache)

    @property
    def statistics(self) -> Statistics:
        """Mean and deviation that pixels are normalized with."""
        return statistics_of(self.clip, self.pixel_statistics)

    def open(self, runtime: Runtime) -> None:
        """The cache, where the run has it."""
        if self.cache is not None:
            self.cache.open(runtime.out)

    def report(self, runtime: Runtime) -> None:
        """Log what the cache has done since it was opened."""
        if self.cache is not None:
            runtime.log("front_ends", **self.cache.counts, bytes=int(self.cache.used))

    def new_parts(self, problem: Problem) -> dict[str, nn.Module]:
        """Fresh parts of the readout."""
        return readout.new_parts(problem, self.clip, self.clap, self.readout)

    def texts(self, problem: Problem) -> Any:
        """The fixed texts of a problem's classes, encoded once."""
        key = (problem.kind, problem.candidates, self.clip.device)
        if key not in self._texts:
            self._texts[key] = readout.texts_of(problem, self.clip, self.clap, self.readout)
        return self._texts[key]

    def seen_classes(self, parts: Any, texts: Any) -> Tensor | None:
        """Features of the class prompts, if the problem has any."""
        return None if texts is None else readout.class_features(self.clip, parts, texts, self.readout)


def system_of(config: Any, clip: Clip, clap: Clap) -> System:
    """The towers with a config's `mask_dim`, `mask_heads`, `pixel_statistics`, `cache_gigabytes` and `cache_folder`."""
    return System(
        clip=clip,
        clap=clap,
        readout=Readout(mask_dim=config.mask_dim, mask_heads=config.mask_heads),
        pixel_statistics=config.pixel_statistics,
        cache_gigabytes=config.cache_gigabytes,
        cache_folder=config.cache_folder,
    )


def _facts(clip: Clip, clap: Clap, statistics: Statistics) -> Iterator[bytes]:
    """What entries of the cache depend on beside the video."""
    yield f"1 {clip.image_size} {statistics} {clip.dtype} {clap.front}".encode()
    for name, tensor in sorted(clip.model.vision_model.embeddings.state_dict().items()):
        yield name.encode()
        yield tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
