"""From the towers' last tokens to losses and answers of every kind of task.

Knows parts by name (`context`, `clip_adapters`, `contrast`, `head`), the four kinds and `classify`. Does not know what
a method inserts into the towers, nor stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.errors import DataError
from perdure.families.audio_visual import losses
from perdure.families.audio_visual.events import (
    ClassPosition,
    Context,
    Texts,
    event_logits,
    presence,
    read_texts,
    seen_texts,
)
from perdure.families.audio_visual.heads import AnswerHead, FeatureAdapter, SegmentHead
from perdure.families.audio_visual.inputs import Problem
from perdure.families.audio_visual.towers import frame_features
from perdure.types import Batch

if TYPE_CHECKING:
    from perdure.models.clap import Clap
    from perdure.models.clip import Clip

EVENT_KINDS = ("localize-events", "parse-video", "classify")


@dataclass(frozen=True, kw_only=True)
class Readout:
    """Settings of what stands on top of the towers."""

    context_tokens: int = 4
    class_position: ClassPosition = "end"
    audio_scale: Literal["raw", "exp"] = "raw"
    weights: tuple[float, float, float] = (5.0, 2.0, 1.5)
    adapter_ratio: float = 0.2
    adapter_reduction: int = 4
    answer_heads: int = 4
    dropout: float = 0.1
    mask_dim: int = 512
    mask_heads: int = 8
    contrast_scale: float | None = None
    """None: CLIP's logit scale."""


def new_parts(problem: Problem, clip: Clip, clap: Clap, settings: Readout) -> dict[str, nn.Module]:
    """Fresh parts of the readout of a problem."""
    dim = clip.dim

    def adapter() -> FeatureAdapter:
        return FeatureAdapter(dim, reduction=settings.adapter_reduction, ratio=settings.adapter_ratio)

    parts: dict[str, nn.Module] = {
        "clip_adapters": nn.ModuleDict({"image": adapter(), "text": adapter()}),
        "contrast": nn.Linear(dim, dim),
    }
    if problem.kind != "answer":
        parts["context"] = Context(settings.context_tokens, clip.text_config.hidden_size)
    visual, audio = clip.vision_config.hidden_size, clap.width
    if problem.kind == "answer":
        parts["head"] = AnswerHead(
            visual=visual,
            audio=audio,
            words=max(problem.words, 1),
            answers=len(problem.candidates),
            heads=settings.answer_heads,
            dropout=settings.dropout,
        )
    elif problem.kind == "segment":
        widths = mask_widths(problem, clip, first=visual // 2)
        parts["head"] = SegmentHead(
            visual=visual,
            audio=audio,
            dim=settings.mask_dim,
            heads=settings.mask_heads,
            first=visual // 2,
            widths=widths,
        )
    return parts


def mask_widths(problem: Problem, clip: Clip, *, first: int) -> tuple[int, ...]:
    """Channels after each doubling from the patch grid to the masks: halved each time, at least 64."""
    grid = clip.image_size // clip.vision_config.patch_size
    size = problem.mask_size or clip.image_size
    doublings = (size // grid).bit_length() - 1
    if grid * 2**doublings != size or doublings < 1:
        raise DataError(
            f"masks of {size} pixels do not fit CLIP's grid of {grid} x {grid} patches",
            where=f"task '{problem.name}'",
            expected=f"{grid} times a power of two, such as {grid * 2 ** max(doublings, 1)}",
        )
    return tuple(max(first >> (i + 1), 64) for i in range(doublings))


def texts_of(problem: Problem, clip: Clip, clap: Clap, settings: Readout) -> Texts | None:
    """The fixed texts of a problem that is answered by class names."""
    if problem.kind not in EVENT_KINDS:
        return None
    return read_texts(clip, clap, problem.candidates, tokens=settings.context_tokens)


def class_features(clip: Clip, parts: Mapping[str, nn.Module], texts: Texts, settings: Readout) -> Tensor:
    """Adapted visual text features of the classes, with gradients to context and adapter."""
    context, adapters = parts["context"], parts["clip_adapters"]
    assert isinstance(context, Context) and isinstance(adapters, nn.ModuleDict)
    return adapters["text"](seen_texts(clip, texts, context.vectors, settings.class_position))


def outputs(
    problem: Problem,
    clip: Clip,
    clap: Clap,
    parts: Mapping[str, Any],
    visual: Tensor,
    audio: Tensor,
    batch: Batch,
    *,
    segments: int,
    texts: Texts | None,
    seen_classes: Tensor | None,
    settings: Readout,
) -> dict[str, Tensor]:
    """``scores``, for events also ``visual``, ``audio`` and ``contrast``; or ``masks``."""
    if problem.kind == "answer":
        return {"scores": parts["head"](visual, audio, batch["question"])}
    if problem.kind == "segment":
        return {"masks": parts["head"](visual, audio).unflatten(0, (-1, segments))}
    assert texts is not None and seen_classes is not None
    seen, heard = frame_features(clip, visual), clap.audio_features(audio)
    scale = clap.raw_scale.exp() if settings.audio_scale == "exp" else clap.raw_scale
    adapted = parts["clip_adapters"]["image"](seen)
    pair = event_logits(
        adapted,
        heard,
        seen_classes=seen_classes,
        heard_classes=texts.heard.to(heard.dtype),
        seen_scale=clip.scale.detach(),
        heard_scale=scale,
    )
    by_eye, by_ear = (2 * logits.unflatten(0, (-1, segments)) for logits in pair)
    contrast_scale = clip.scale.detach() if settings.contrast_scale is None else settings.contrast_scale
    contrast = losses.contrast_logits(seen, parts["contrast"](heard), segments=segments, scale=contrast_scale)
    return {"scores": by_eye + by_ear, "visual": by_eye, "audio": by_ear, "contrast": contrast}


def loss(problem: Problem, out: Mapping[str, Tensor], batch: Batch, settings: Readout) -> dict[str, Tensor]:
    """The loss of the problem's kind under "loss", and its parts."""
    first = problem.offset
    match problem.kind:
        case "answer":
            return {"loss": losses.answer_loss(out["scores"], batch["answer"] - first)}
        case "segment":
            return {"loss": losses.segmentation_loss(out["masks"], batch["mask"])}
        case "localize-events":
            labels = one_hot(batch["labels"], out["scores"], first)
            event = losses.localization_loss(out["scores"].flatten(0, 1), labels.flatten(0, 1))
        case "parse-video":
            event = losses.parsing_loss(out["scores"], multi_hot(batch["labels"], out["scores"], first))
        case _:
            event = F.cross_entropy(out["scores"].mean(1), batch["label"] - first)
    contrast = out["contrast"]
    return {"loss": losses.event_loss(event, contrast, contrast.T, weights=settings.weights), "event_loss": event}


def answer(problem: Problem, out: Mapping[str, Tensor]) -> Any:
    """Predictions as `perdure.metrics` takes them."""
    match problem.kind:
        case "segment":
            return out["masks"]
        case "parse-video":
            heard, seen = (presence(out[m], out["scores"]) for m in ("audio", "visual"))
            return {"scores": out["scores"], "audio": heard, "visual": seen}
        case "classify":
            return out["scores"].mean(1)
    return out["scores"]


def one_hot(labels: Tensor, scores: Tensor, first: int) -> Tensor:
    """Labels ``[videos segments]`` as rows of the scores' classes; soft labels stay as they are."""
    if labels.ndim == 3:
        return labels.to(scores.dtype)
    return F.one_hot(labels - first, scores.shape[2]).to(scores.dtype)


def multi_hot(labels: Tensor, scores: Tensor, first: int) -> Tensor:
    """Label lists ``[videos most]``, -1 where there is none, as zeros and ones ``[videos classes]``."""
    present = torch.zeros(len(labels), scores.shape[2] + 1, dtype=scores.dtype, device=scores.device)
    place = torch.where(labels < 0, scores.shape[2], labels - first)
    return present.scatter_(1, place, 1.0)[:, :-1]
