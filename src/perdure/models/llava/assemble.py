"""Loading a LLaVA as a whole, or putting one together from a Llama, a CLIP tower and a projector.

Knows Hugging Face folders and hub ids, and the projector files of LLaVA's first stage. Knows no examples.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.errors import WeightsError
from perdure.models.clip.archive import read_tensors
from perdure.models.clip.preprocessor import normalization, refuse
from perdure.models.clip.source import place
from perdure.models.clip.transform import read_json
from perdure.models.llava.tokenizer import load_tokenizer

PROJECTOR_NAMES = {
    "model.mm_projector.0.weight": "linear_1.weight",
    "model.mm_projector.0.bias": "linear_1.bias",
    "model.mm_projector.2.weight": "linear_2.weight",
    "model.mm_projector.2.bias": "linear_2.bias",
}
"""Names in LLaVA's own projector files -> in transformers' projector."""


def whole(
    weights: str, *, revision: str | None, dtype: torch.dtype, legacy: bool | None, with_weights: bool = True
) -> tuple[Any, Any]:
    """A LlavaForConditionalGeneration and its tokenizer from a hub id or a folder; without weights its shape alone.

    Raises WeightsError if there is none.
    """
    from transformers import LlavaForConditionalGeneration

    weights = place(weights)
    try:
        with quiet():
            model = _read(
                LlavaForConditionalGeneration, weights, with_weights, revision=revision or "main", dtype=dtype
            )
    except (OSError, ValueError) as error:
        raise unreadable("a LLaVA", weights, error) from None
    strategy = model.config.vision_feature_select_strategy
    refuse(strategy != "default", f"vision_feature_select_strategy is {strategy!r}", "'default' (patches)", weights)
    return model, load_tokenizer(weights, legacy=legacy)


def parts(
    llm: str,
    vision: str,
    projector: str | None,
    *,
    revision: str | None,
    dtype: torch.dtype,
    legacy: bool | None,
    with_weights: bool = True,
) -> tuple[Any, Any]:
    """A LlavaForConditionalGeneration of a causal language model, a CLIP tower and a projector file."""
    from transformers import AutoModelForCausalLM, CLIPVisionModel

    llm, vision = place(llm), place(vision)
    try:
        with quiet():
            decoder = _read(AutoModelForCausalLM, llm, with_weights, revision=revision or "main", dtype=dtype)
    except (OSError, ValueError) as error:
        raise unreadable("a language model", llm, error) from None
    try:
        with quiet():
            tower = _read(CLIPVisionModel, vision, with_weights, dtype=dtype)
    except (OSError, ValueError) as error:
        raise unreadable("a CLIP", vision, error) from None
    model = put_together(decoder, tower)
    if projector is not None and with_weights:
        load_projector(model, read_projector(projector_file(projector)), where=projector)
    return model, load_tokenizer(llm, legacy=legacy)


def pixel_statistics(
    weights: str, *, revision: str | None = None
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation that ``preprocessor_config.json`` beside a vision tower states, else OpenAI's."""
    from transformers.utils import cached_file

    file = cached_file(
        place(weights),
        "preprocessor_config.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    mean, std, interpolation = normalization(read_json(Path(file)) if file else {}, where=str(file))
    refuse(interpolation != "bicubic", "resample is not 3", "3 (bicubic), as LLaVA resizes", str(file))
    return mean, std


def put_together(decoder: Any, tower: Any) -> Any:
    """A LLaVA around a ``LlamaForCausalLM`` and a ``CLIPVisionModel``, whose tensors it takes over.

    One vocabulary row is added for the image's place. The projector starts at random.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    rows = decoder.get_input_embeddings().weight.shape[0]
    decoder.resize_token_embeddings(rows + 1, mean_resizing=False)
    patches = (tower.config.image_size // tower.config.patch_size) ** 2
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=decoder.config,
        image_token_index=rows,
        image_seq_length=patches,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=decoder.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.language_model, model.lm_head = decoder.model, decoder.lm_head
    model.model.vision_tower = tower
    weight = decoder.lm_head.weight
    fresh = model.model.multi_modal_projector.to_empty(device=weight.device).to(weight.dtype)
    for layer in (fresh.linear_1, fresh.linear_2):
        layer.reset_parameters()
    if decoder.generation_config is not None:
        model.generation_config = decoder.generation_config
    return model


def projector_file(name: str) -> Path:
    """A local file, or ``owner/repository/file`` on the hub, which is fetched.

    Raises WeightsError if it is neither.
    """
    path = Path(name).expanduser()
    parts = name.split("/")
    if path.is_file() or path.is_absolute() or len(parts) != 3:
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise unreadable("a projector", name, error) from None


def read_projector(path: Path) -> dict[str, Tensor]:
    """Tensors of a projector file, under transformers' names. Pickles are read as tensors only.

    Raises WeightsError if it is absent or holds something else.
    """
    try:
        tensors, _ = read_tensors(path)
    except struct.error:  # what torch's unpickler raises on a file cut short
        raise WeightsError("a projector cannot be read (the file is cut short)", where=str(path)) from None
    found = {PROJECTOR_NAMES.get(n.removeprefix("base_model.model."), n): t for n, t in tensors.items()}
    missing = [name for name in PROJECTOR_NAMES.values() if name not in found]
    if missing:
        raise WeightsError(
            f"the tensors {sorted(tensors)[:6]} are no projector",
            where=str(path),
            expected=", ".join(PROJECTOR_NAMES),
        )
    return {name: found[name] for name in PROJECTOR_NAMES.values()}


def load_projector(model: Any, tensors: dict[str, Tensor], *, where: str) -> None:
    """Put a projector's tensors into a LLaVA. Raises WeightsError if their shapes do not fit."""
    own = model.model.multi_modal_projector.state_dict()
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise WeightsError(
                f"{name} is {tuple(tensor.shape)}", where=where, expected=f"{tuple(own[name].shape)} for these parts"
            )
    model.model.multi_modal_projector.load_state_dict(tensors)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars, and its report on tensors that are not needed (a CLIP's text tower)."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _read(kind: Any, weights: str, with_weights: bool, *, dtype: torch.dtype, **settings: Any) -> Any:
    """A pretrained model, or one without weights (on the device `meta`) that has its shape."""
    if with_weights:
        return filled(kind, weights, dtype=dtype, **settings)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(weights, **settings)
    with torch.device("meta"):
        if hasattr(kind, "from_config"):
            return kind.from_config(config)
        return kind(getattr(config, "vision_config", config) if "Vision" in kind.__name__ else config)


def filled(kind: Any, weights: str, **settings: Any) -> Any:
    """A pretrained model all of whose weights are in its files: what is missing would be left at random."""
    model, info = kind.from_pretrained(weights, output_loading_info=True, **settings)
    lacking = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    lacking = [name for name in lacking if not name.endswith("position_ids")]
    if lacking:
        raise WeightsError(f"{len(lacking)} tensors are missing, first {lacking[0]}", where=weights)
    return model


def unreadable(what: str, where: str, error: BaseException) -> WeightsError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return WeightsError(f"{what} cannot be read ({lines[0]})", where=where, expected="a hub id or a folder")
