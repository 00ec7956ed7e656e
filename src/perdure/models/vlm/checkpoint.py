"""Image-text-to-text checkpoints of transformers: which can be taken, their processors and their weights.

Knows Hugging Face folders and hub ids. What cannot be taken is refused in a sentence, before any weight is read.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from perdure.errors import MissingExtra, RecipeError, WeightsError
from perdure.files.text_files import read_text
from perdure.models.clip.source import place
from perdure.models.llava.assemble import filled, quiet, unreadable

REFUSED = {
    "mllama": "its cross-attention masks are made for a whole batch",
    "paligemma": "it is no chat model: one image, one question and its suffix",
    "llava_next_video": "it is made for videos",
    "video_llava": "it is made for videos",
}
"""Model types of the generic map that this path does not fit, and why."""
BESIDE = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
"""Files that servers with an older transformers look for; 5.x writes them no more, so an export copies them."""

OVER_ALL_FRAMES = ("Qwen3VL",)
"""Processors whose limit of a video's pixels is that of all its frames together."""


def settings_of(weights: str, revision: str | None) -> Any:
    """The configuration of a checkpoint that can be taken.

    Raises:
        WeightsError: there is none, or it is of a type that does not fit.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    name = place(weights)
    try:
        config = AutoConfig.from_pretrained(name, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise unreadable("an image-text-to-text model", name, error) from None
    kind = config.model_type
    why = REFUSED.get(kind, "")
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        why = "transformers has no image-text-to-text model of that type"
    elif getattr(config, "is_encoder_decoder", False):
        why = "it has an encoder and a decoder"
    if why:
        raise WeightsError(
            f"model type {kind!r} cannot be taken: {why}",
            where=weights,
            expected="a decoder that answers in conversations, such as Qwen2.5-VL, InternVL, SmolVLM, Gemma 3",
        )
    return config


def processor_of(
    weights: str,
    revision: str | None,
    *,
    template: Path | None,
    max_pixels: int | None,
    max_tiles: int | None,
    frames: int,
) -> Any:
    """The checkpoint's processor, with a chat template and the limits of images and of a video's `frames`.

    Raises:
        WeightsError: there is none, or no template.
        MissingExtra: a package that it needs is not installed.
        RecipeError: a limit that its images do not have.
    """
    from transformers import AutoProcessor

    try:
        with quiet():
            processor = AutoProcessor.from_pretrained(place(weights), revision=revision or "main")
    except ImportError as error:
        raise MissingExtra(f"the processor needs a package ({first_line(error)})", where=weights) from None
    except (OSError, ValueError) as error:
        raise unreadable("a processor", weights, error) from None
    if template is not None:
        processor.chat_template = read_text(template)
    if not getattr(processor, "chat_template", None) or not hasattr(processor, "image_processor"):
        raise WeightsError(
            "there is no chat template" if hasattr(processor, "image_processor") else "the processor takes no images",
            where=weights,
            todo="Name one: models.llm.chat_template=FILE.jinja, as the model was trained with.",
        )
    of_videos: Any = getattr(processor, "video_processor", None)
    if hasattr(of_videos, "cap_pixels_per_frame"):
        of_videos.cap_pixels_per_frame = True  # as in the families' own code; transformers will make it the default
    if max_pixels is not None:
        _limit_pixels(processor.image_processor, max_pixels)
        if of_videos is not None:
            whole = type(of_videos).__name__.startswith(OVER_ALL_FRAMES)
            _limit_pixels(of_videos, max_pixels * frames if whole else max_pixels)
    if max_tiles is not None:
        _limit_tiles(processor.image_processor, max_tiles)
    return processor


def model_of(weights: str, revision: str | None, *, dtype: torch.dtype, attention: str, **settings: Any) -> Any:
    """The network, all of whose weights are in its files. Raises WeightsError."""
    from transformers import AutoModelForImageTextToText

    try:
        with quiet():
            return filled(
                AutoModelForImageTextToText,
                place(weights),
                revision=revision or "main",
                dtype=dtype,
                attn_implementation=attention,
                **settings,
            )
    except (OSError, ValueError, ImportError) as error:
        raise unreadable("an image-text-to-text model", weights, error) from None


def empty_model(config: Any) -> Any:
    """A network without weights, which knows its sizes and names."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def decoder(model: Any) -> nn.Module:
    """The language model within, without its head."""
    inner = model.model
    found = next((getattr(inner, name) for name in ("language_model", "text_model") if hasattr(inner, name)), None)
    return model.get_decoder() if found is None else found


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _limit_pixels(looks: Any, most: int) -> None:
    """Processors that count pixels keep an image's own shape (Qwen-VL, GLM-4V): `size` is from how many to how many."""
    if not hasattr(looks, "merge_size"):
        raise _no_limit("max_pixels", looks, "processors that cut an image of any shape into patches (Qwen-VL)")
    least = min(looks.size.shortest_edge, most)
    looks.size = type(looks.size)(shortest_edge=least, longest_edge=most)


def _limit_tiles(looks: Any, most: int) -> None:
    """Processors that cut a large image into tiles: InternVL, LLaVA-NeXT and OneVision, Idefics3 and SmolVLM."""
    if getattr(looks, "max_patches", None) is not None:
        looks.max_patches, looks.min_patches = most, min(looks.min_patches, most)
    elif grid := getattr(looks, "image_grid_pinpoints", None):
        side = min(min(pair) for pair in grid)
        kept = [pair for pair in grid if pair[0] * pair[1] <= most * side**2]
        if not kept:
            least = min(a * b for a, b in grid) // side**2
            raise RecipeError(f"max_tiles is {most}", where="models.llm.max_tiles", expected=f"at least {least}")
        looks.image_grid_pinpoints = kept
    elif inner := getattr(looks, "max_image_size", None):
        longest = inner["longest_edge"] * math.isqrt(most)
        looks.size = type(looks.size)(longest_edge=min(looks.size.longest_edge, longest))
    else:
        raise _no_limit("max_tiles", looks, "processors that cut an image into tiles (InternVL, LLaVA-NeXT, SmolVLM)")


def _no_limit(name: str, looks: Any, expected: str) -> RecipeError:
    return RecipeError(f"{type(looks).__name__} has no such limit", where=f"models.llm.{name}", expected=expected)
