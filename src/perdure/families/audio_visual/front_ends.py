"""From a batch to embedded frames and patches: all that comes before anything trained, made or read from a cache.

Knows batches, both front ends and the modes of the published code. Does not know parts, insertions or losses.

With a cache, a video that has an entry brings ``tokens`` and ``mel`` in place of ``frames`` and ``wave``, and is not
decoded; the others are made one by one, so that an entry does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import default_collate

from perdure.errors import RecipeError
from perdure.families.audio_visual import towers
from perdure.families.audio_visual.front_end_cache import MEDIA, small
from perdure.families.audio_visual.inputs import (
    Problem,
    Statistics,
    asked,
    media,
    mel_of,
    mixup,
    normalized_pixels,
    pixels_of,
    segments_in,
    spec_mask,
)
from perdure.families.audio_visual.system import Modes, System
from perdure.types import Batch, Example

if TYPE_CHECKING:
    from perdure.models.clap import Clap
    from perdure.models.clip import Clip

MADE = ("tokens", "mel")
"""What an entry holds: embedded frames ``[segments tokens dim]``, decibels ``[segments frames mels]`` of one second
that is repeated (see `FrontEnd.period`)."""


def embed(system: System, problem: Problem, batch: Batch, *, update: bool = False) -> tuple[Tensor, Tensor, int]:
    """Embedded frames and patches, before anything trained, and the segments of a video."""
    modes, segments = system.modes, segments_in(batch)
    with torch.no_grad():
        batch = resolve(system, batch)
        if "tokens" in batch:
            frames = batch["tokens"].flatten(0, 1).to(system.clip.dtype)
            check_seconds(system.clap, problem)
            mel = system.clap.front.repeated(batch["mel"].flatten(0, 1).float(), seconds=problem.clip_seconds)
        else:
            frames = towers.embed_frames(system.clip, pixels_of(batch, system.statistics))
            mel = mel_of(system.clap, batch, seconds=problem.clip_seconds)
        patches = system.clap.patches(
            mel,
            batch_statistics=modes.audio_statistics,
            update=update and modes.audio_statistics,
            change=lambda normalized: _augmented(normalized, modes, problem),
        )
    return frames, patches, segments


# -- with a cache -------------------------------------------------------------------------------------------


def preprocess(system: System, example: Example, training: bool) -> Batch:
    """`inputs.preprocess`; or the example's entry, or what it is made of and its ``key``."""
    wanted = asked(example, training=training)
    key = None if system.cache is None else system.cache.key(example)
    if system.cache is None or key is None:
        return {**media(example, size=system.clip.image_size), **wanted}
    if (entry := system.cache.read(key)) is not None:
        return {**entry, **wanted}
    return {**media(example, size=system.clip.image_size), **wanted, "key": key}


def collate(items: Sequence[Batch]) -> Batch:
    """Stacks examples, those with and those without an entry apart; ``cached`` says which is which."""
    if not any("key" in item or "tokens" in item for item in items):
        return default_collate(list(items))
    batch: dict[str, Any] = {}
    for part, names in (
        ([item for item in items if "tokens" in item], MADE),
        ([item for item in items if "tokens" not in item], MEDIA),
        (items, [name for name in items[0] if name not in (*MADE, *MEDIA, "key")]),
    ):
        if part and names:
            batch |= default_collate([{name: item[name] for name in names} for item in part])
    keys = [item["key"] for item in items if "key" in item]
    return batch | {"cached": ["tokens" in item for item in items], "key": keys}


def resolve(system: System, batch: Batch) -> Batch:
    """A batch whose videos all bring ``tokens`` and ``mel``; entries that were missing are made and kept."""
    if "cached" not in batch:
        return batch
    stored = zip(*(batch[name] for name in MADE)) if "tokens" in batch else iter(())
    fresh = _fresh(system, batch) if "frames" in batch else iter(())
    rows = [next(stored if cached else fresh) for cached in batch["cached"]]
    assert system.cache is not None
    system.cache.counts["read"] += sum(batch["cached"])
    rest = {name: value for name, value in batch.items() if name not in (*MEDIA, "cached", "key")}
    with torch.autocast(system.clip.device.type, enabled=False):  # on the CPU it stacks no float16
        return rest | {name: torch.stack(column) for name, column in zip(MADE, zip(*rows))}


def _fresh(system: System, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    cache = system.cache
    assert cache is not None
    for frames, wave, key in zip(batch["frames"], batch["wave"], batch["key"], strict=True):
        entry = make_entry(system.clip, system.clap, frames, wave, statistics=system.statistics)
        cache.counts["made"] += 1
        cache.write(key, {name: tensor.cpu() for name, tensor in zip(MADE, entry)})
        yield entry


def make_entry(
    clip: Clip,
    clap: Clap,
    frames: UInt8[Tensor, "segments 3 size size"],
    wave: Float[Tensor, "segments samples"],
    *,
    statistics: Statistics,
) -> tuple[Tensor, Tensor]:
    """Embedded frames and the decibels of one period of each second, float16."""
    with torch.no_grad(), torch.autocast(frames.device.type, enabled=False):
        tokens = towers.embed_frames(clip, normalized_pixels(frames, statistics))
        return small(tokens), small(clap.front.period(wave.float()))


def check_seconds(clap: Clap, problem: Problem) -> None:
    """Raise a RecipeError if the clips of a problem cannot be made from entries."""
    if not clap.front.can_repeat(problem.clip_seconds):
        raise RecipeError(
            f"seconds of sound are repeated to {problem.clip_seconds:g} s",
            where=f"task '{problem.name}'",
            expected="a whole number of seconds, 2 or more, as entries of the cache hold one second",
            todo="Set method.cache_gigabytes=0.",
        )


# -- modes of the published code ----------------------------------------------------------------------------


def _augmented(normalized: Tensor, modes: Modes, problem: Problem) -> Tensor:
    """Spectrograms as the published code changes them: stripes first, then mixtures."""
    if modes.augmentation:
        normalized = spec_mask(normalized)
    if modes.mixup and problem.kind == "segment":
        normalized = mixup(normalized, _beta(len(normalized)).to(normalized))
    return normalized


def _beta(n: int) -> Tensor:
    """Shares of a mixture, drawn from Beta(1/2, 1/2)."""
    half = torch.full((n,), 0.5)
    return torch.distributions.Beta(half, half).sample()
