"""Examples with frames and sound -> batches, and batches -> what the towers take.

Knows frames as images, waves at 32 kHz, segments of one second, targets of the four kinds and of `classify`. Does not
know data sets or methods. An Example may bring ``pixels`` (normalized) and ``logmel`` in place of ``frames`` and
``wave``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from perdure.errors import DataError, UnreadableExample
from perdure.images import open_image
from perdure.types import Batch, Example, Kind, Query, Task

if TYPE_CHECKING:
    from perdure.models.clap import Clap
    from perdure.models.clip import Clip

RATE = 32_000
MOST_LABELS = 32
"""Events that a video may have."""
Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
"""Mean and deviation of the channels of pixels in 0..1."""
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a method must know of a task to build its head and to answer."""

    name: str
    kind: Kind
    candidates: tuple[str, ...]
    offset: int = 0
    segments: int = 10
    """Frames, and seconds of sound, a video."""
    clip_seconds: float = 10.0
    """Length that each second of sound is repeated to."""
    words: int = 0
    """Size of the questions' vocabulary."""
    mask_size: int = 0
    """Side of the masks in pixels."""

    def query(self) -> Query:
        """The question that evaluation asks when the task's name is revealed."""
        return Query(kind=self.kind, candidates=self.candidates, offset=self.offset, task=self.name)


def problem_of(task: Task) -> Problem:
    """The problem that a task poses; its targets and names are checked.

    Raises:
        DataError: a name twice, or a target beyond the candidates.
    """
    names = task.candidates
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"the class {twice[0]!r} is there twice", where=f"task '{task.name}'")
    facts = task.facts
    problem = Problem(
        name=task.name,
        kind=task.kind,
        candidates=names,
        offset=task.offset,
        segments=int(facts.get("segments", 10)),
        clip_seconds=float(facts.get("clip_seconds", 10.0)),
        words=len(facts.get("vocabulary", ())),
        mask_size=int(facts.get("mask_size", 0)),
    )
    labels = [label for target in task.train.targets for label in labels_of(target, task.kind)]
    if wrong := [label for label in labels if not problem.offset <= label < problem.offset + len(names)]:
        raise DataError(
            f"a target has label {wrong[0]}",
            where=f"task '{task.name}'",
            expected=f"labels {problem.offset} to {problem.offset + len(names) - 1}",
        )
    return problem


def labels_of(target: Any, kind: Kind) -> Sequence[int]:
    """Class indices that a target names."""
    match kind:
        case "localize-events":
            return list(target)
        case "parse-video":
            return list(target["labels"])
        case "answer":
            return [target["answer"]]
        case "classify":
            return [int(target)]
    return []


# -- from an Example to a batch -----------------------------------------------------------------------------


def preprocess(example: Example, *, size: int, training: bool) -> Batch:
    """``frames`` uint8 ``[segments 3 size size]``, ``wave`` ``[segments samples]``, question and target.

    Raises:
        UnreadableExample: frames are missing, the wave is not as many seconds at 32 kHz as there are frames.
    """
    return {**media(example, size=size), **asked(example, training=training)}


def media(example: Example, *, size: int) -> dict[str, Any]:
    """``frames`` and ``wave``, or the ``pixels`` and ``logmel`` that the example brings."""
    inputs = example.inputs
    if "pixels" in inputs:
        return {name: torch.as_tensor(inputs[name]) for name in ("pixels", "logmel")}
    frames = [read_frame(frame, size, where=example.id) for frame in inputs["frames"]]
    return {"frames": torch.stack(frames), "wave": read_wave(inputs["wave"], len(frames), where=example.id)}


def asked(example: Example, *, training: bool) -> dict[str, Any]:
    """The question, if there is one, and the target."""
    question = example.inputs.get("question")
    item = {} if question is None else {"question": torch.as_tensor(question, dtype=torch.int64)}
    return item | _target(example.target, training=training, where=example.id)


def read_frame(value: Any, size: int, *, where: str) -> UInt8[Tensor, "3 size size"]:
    """An image squeezed to a square by bicubic resampling (the aspect is not kept)."""
    image = open_image(value, where=where)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1)


def read_wave(value: Any, segments: int, *, where: str) -> Float[Tensor, "segments samples"]:
    """One second a row, from a ``.npy`` file or an array: ``segments * 32000`` samples, or as many rows as seconds.

    Whole numbers (16-bit sound) are brought to -1..1.
    """
    wave = value
    if isinstance(value, str | Path):
        where = f"{where} ({value})"
        try:
            wave = np.load(value, allow_pickle=False)
        except FileNotFoundError:
            raise UnreadableExample("there is no such file", where=where, expected="a wave in .npy form") from None
        except (OSError, ValueError, EOFError) as error:
            raise UnreadableExample(f"not a readable .npy file ({error})", where=where) from None
    samples = np.squeeze(np.asarray(wave))
    if samples.shape not in ((segments * RATE,), (segments, RATE)):
        shape = f", in an array of {' x '.join(map(str, samples.shape))}" if samples.ndim > 1 else ""
        raise UnreadableExample(
            f"the wave has {samples.size} samples{shape}, the video {segments} frames",
            where=where,
            expected=f"{segments} x {RATE} samples: one second of mono sound at 32 kHz a frame",
            todo="Prepare the videos with `perdure data prepare`.",
        )
    scale = float(np.iinfo(samples.dtype).max) if np.issubdtype(samples.dtype, np.integer) else 1.0
    flat = torch.as_tensor(samples, dtype=torch.float32).flatten() / scale
    if not torch.isfinite(flat).all():
        raise UnreadableExample("the wave holds values that are not numbers", where=where)
    return flat.view(segments, RATE)


def _target(target: Any, *, training: bool, where: str) -> dict[str, Any]:
    """Tensors of a target; nothing where there is none."""
    if target is None:
        return {}
    if isinstance(target, Mapping) and "answer" in target:
        return {"answer": int(target["answer"])}
    if isinstance(target, Mapping):
        labels = torch.full((MOST_LABELS,), -1)
        present = list(target["labels"])
        if len(present) > MOST_LABELS:
            raise UnreadableExample(f"it has {len(present)} events", where=where, expected=f"at most {MOST_LABELS}")
        labels[: len(present)] = torch.tensor(present, dtype=torch.int64)
        return {"labels": labels}
    if isinstance(target, int | np.integer):
        return {"label": int(target)}
    if len(target) and isinstance(target[0], int | np.integer):
        return {"labels": torch.tensor(list(target))}
    if not training:
        return {}  # masks are read when they are scored
    return {"mask": _first_mask(target, where)}


def _first_mask(masks: Sequence[Any], where: str) -> Tensor:
    """uint8 ``[height width]``: what is not black in the first mask."""
    if not len(masks):
        raise UnreadableExample("it has no mask", where=where)
    first = masks[0]
    if isinstance(first, np.ndarray | Tensor):
        return (torch.as_tensor(np.asarray(first)) > 0).to(torch.uint8)
    return torch.from_numpy((np.asarray(open_image(first, where=where)).max(2) > 0).astype(np.uint8))


# -- from a batch to the towers -----------------------------------------------------------------------------


def statistics_of(clip: Clip, name: Literal["imagenet", "clip"]) -> Statistics:
    """ImageNet's, or those that this CLIP was made with."""
    return IMAGENET if name == "imagenet" else (clip.transform.mean, clip.transform.std)


def pixels_of(batch: Batch, statistics: Statistics = IMAGENET) -> Float[Tensor, "frames 3 size size"]:
    """All frames of all videos, normalized."""
    if "pixels" in batch:
        return batch["pixels"].flatten(0, 1).float()
    return normalized_pixels(batch["frames"].flatten(0, 1), statistics)


def normalized_pixels(
    frames: UInt8[Tensor, "frames 3 size size"], statistics: Statistics
) -> Float[Tensor, "frames 3 size size"]:
    """Less the mean of a channel, over its deviation."""
    mean, std = (torch.tensor(v).view(3, 1, 1).to(frames.device, non_blocking=True) for v in statistics)
    return (frames.float() / 255 - mean) / std


def mel_of(clap: Clap, batch: Batch, *, seconds: float) -> Float[Tensor, "frames 1 time mels"]:
    """Log-mel of all seconds of all videos, each repeated to `seconds`."""
    if "logmel" in batch:
        return batch["logmel"].flatten(0, 1).float()
    return clap.log_mel(batch["wave"].flatten(0, 1), seconds=seconds)


def segments_in(batch: Batch) -> int:
    """Frames a video."""
    return next(batch[name] for name in ("tokens", "pixels", "frames") if name in batch).shape[1]


def mixup(
    mel: Float[Tensor, "frames 1 time mels"], share: Float[Tensor, " frames"]
) -> Float[Tensor, "frames 1 time mels"]:
    """Each spectrogram mixed with that of the opposite place in the batch."""
    weight = share.view(-1, 1, 1, 1)
    return weight * mel + (1 - weight) * mel.flip(0)


def spec_mask(mel: Float[Tensor, "frames 1 time mels"]) -> Float[Tensor, "frames 1 time mels"]:
    """SpecAugment: two stripes of up to 64 frames and two of up to 8 bands of each are 0."""
    keep = torch.ones_like(mel)
    for axis, widest in ((2, 64), (3, 8)):
        size = mel.shape[axis]
        for _ in range(2):
            width = torch.randint(0, min(widest, size), (len(mel),))
            begin = (torch.rand(len(mel)) * (size - width)).long()
            place = torch.arange(size)
            inside = (place >= begin[:, None]) & (place < (begin + width)[:, None])
            shape = (len(mel), 1, size, 1) if axis == 2 else (len(mel), 1, 1, size)
            keep = keep * (~inside).view(shape).to(mel)
    return mel * keep
