"""What ``preprocessor_config.json`` says: each field is used, changes nothing here, or is refused by name.

Knows the fields of Hugging Face's image processors. Does not know pixels or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure.errors import WeightsError
from perdure.models.clip import open_clip_config
from perdure.models.clip.transform import MEAN, STD, ClipTransform, channel_triple, read_json

FILE = "preprocessor_config.json"
NO_EFFECT = frozenset(
    [
        "do_convert_rgb",  # always done
        "default_to_square",
        "use_square_size",
        "processor_class",
        "data_format",
        "input_data_format",
        "return_tensors",
        "device",
        "disable_grouping",
        "do_pad",  # after a crop to a square there is nothing to pad
        "pad_size",
        "image_seq_length",
        "_processor_class",
        "_valid_processor_keys",
    ]
)
_KINDS = ("image_processor_type", "feature_extractor_type")
_ONLY_VALUE = {"do_resize": True, "do_rescale": True}
_USED = {"resample", "rescale_factor", "do_normalize", "image_mean", "image_std", "size", "crop_size", "do_center_crop"}


CLIP_KINDS = ("CLIP", "Llava")


def from_folder(
    folder: Path, *, size: int, open_clip: bool = False, kinds: tuple[str, ...] = CLIP_KINDS
) -> ClipTransform:
    """The transform that a model folder describes, else OpenAI's at `size` pixels.

    Reads Hugging Face's ``preprocessor_config.json`` or ``open_clip_config.json``; the latter first where the weights
    are `open_clip`'s.

    Raises:
        WeightsError: a field says what cannot be done here.
    """
    files = (FILE, open_clip_config.FILE)
    for name in reversed(files) if open_clip else files:
        if (folder / name).is_file():
            if name == open_clip_config.FILE:
                return open_clip_config.transform(folder, size=size)
            return _from_huggingface(folder, size=size, kinds=kinds)
    return ClipTransform(size=size)


def normalization(
    said: Mapping[str, Any], *, where: str, kinds: tuple[str, ...] = CLIP_KINDS
) -> tuple[tuple[float, float, float], tuple[float, float, float], str]:
    """Mean and standard deviation by channel and the interpolation that the fields state, else OpenAI's.

    Raises:
        WeightsError: a field has a value that is not possible here, or is unknown.
    """
    known = _USED | _ONLY_VALUE.keys() | NO_EFFECT | set(_KINDS)
    unknown = sorted(said.keys() - known)
    refuse(bool(unknown), f"the field {unknown[:1]} is unknown here", ", ".join(sorted(known)), where)
    stated = [said[name] for name in _KINDS if said.get(name)]
    fits = all(str(kind).startswith(kinds) for kind in stated)
    refuse(not fits, f"the processor is {stated}", f"one of {', '.join(kinds)}", where)
    for name, value in _ONLY_VALUE.items():
        refuse(said.get(name, value) != value, f"{name} is {said.get(name)}", str(value), where)
    factor = float(said.get("rescale_factor", 1 / 255))
    refuse(abs(factor * 255 - 1) > 1e-4, f"rescale_factor is {factor}", "1/255", where)
    names = {2: "bilinear", 3: "bicubic"}
    resample = said.get("resample", 3)
    refuse(resample not in names, f"resample is {resample}", "2 (bilinear) or 3 (bicubic)", where)
    if not said.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), names[resample]
    mean, std = said.get("image_mean") or MEAN, said.get("image_std") or STD
    return channel_triple(mean, where), channel_triple(std, where), names[resample]


def side(said: Any) -> int | None:
    """The side of a square in one of the forms that the fields have; None: no square."""
    if isinstance(said, Mapping):
        sides = {said.get("height"), said.get("width")}
        return sides.pop() if len(sides) == 1 else None
    return said if isinstance(said, int) else None


def refuse(when: bool, what: str, expected: str, where: str) -> None:
    """A WeightsError, if so."""
    if when:
        raise WeightsError(what, where=where, expected=expected)


def _from_huggingface(folder: Path, *, size: int, kinds: tuple[str, ...]) -> ClipTransform:
    where = str(folder / FILE)
    said = read_json(folder / FILE)
    mean, std, interpolation = normalization(said, where=where, kinds=kinds)
    resize = said.get("size", size)
    squeeze = isinstance(resize, Mapping) and "height" in resize
    crops = bool(said.get("do_center_crop", True))
    crop = side(said.get("crop_size", size)) if crops else size
    refuse(crop != size, f"crops to {said.get('crop_size')}", f"the model's {size} pixels", where)
    refuse(not crops and not squeeze, "do_center_crop is False", "a crop, or a size with height and width", where)
    shorter = side(resize) if squeeze or isinstance(resize, int) else resize.get("shortest_edge")
    fits = shorter == size if squeeze else isinstance(shorter, int) and shorter >= size
    least = f"height and width {size}" if squeeze else f"a shortest_edge of at least {size}"
    refuse(not fits, f"size is {resize}", least, where)
    return ClipTransform(
        size=size,
        shorter_side=None if shorter == size else shorter,
        keep_aspect=not squeeze,
        mean=mean,
        std=std,
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
    )
