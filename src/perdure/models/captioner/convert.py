"""Mapper weights from files: perdure's own, and those that ClipCap's and CapDec's code wrote.

Knows names and shapes. Never unpickles: tensors only.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from perdure.errors import WeightsError

FILE = "mapper.safetensors"
MAPPER = ("clip_project.",)
LANGUAGE_MODEL = ("llm.llm.", "llm.", "gpt.")
"""How the published code names the two parts; it saves the language model beside the mapper."""


def load_mapper(path: Path, mapper: nn.Module, llm: nn.Module | None = None) -> None:
    """Fill the mapper, and the language model where the file brings one.

    Raises:
        WeightsError: absent, not tensors only, other names, or other shapes.
    """
    state = _read(path / FILE if path.is_dir() else path)
    found, language = split_official(state)
    _fill(mapper, found or state, where=str(path))
    if llm is not None and language:
        own = set(llm.state_dict())
        kept = {n: t for n, t in language.items() if n in own}
        if len(kept) < len(own) - 1:  # the head is tied to the word vectors, and may be left out
            raise WeightsError("the language model in the file is another one", where=str(path), todo="Check `llm`.")
        _fill(llm, kept, where=str(path), strict=False)


def save_mapper(folder: Path, mapper: nn.Module) -> Path:
    """Write the mapper as `load_mapper` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().cpu().contiguous() for n, t in mapper.state_dict().items()}, str(folder / FILE))
    return folder / FILE


def split_official(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mapper and language model of a published checkpoint, by their own names; both empty for other files."""
    plain = {n.removeprefix("module."): t for n, t in state.items()}
    mapper = {n[len(p) :]: t for n, t in plain.items() for p in MAPPER if n.startswith(p)}
    language: dict[str, Tensor] = {}
    for name, tensor in plain.items():
        prefix = next((p for p in LANGUAGE_MODEL if name.startswith(p)), None)
        if prefix is not None:
            language[name[len(prefix) :]] = tensor
    return mapper, language if mapper else {}


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError("there is no such file", where=str(path), expected=f"{FILE} or a .pt of ClipCap")
    try:
        if path.suffix == ".safetensors":
            return load_file(str(path))
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError, ValueError) as error:
        said = str(error).split("\n", 1)[0]
        raise WeightsError(f"cannot be read as tensors only ({said})", where=str(path)) from None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(t, Tensor) for t in content.values()):
        raise WeightsError("this is no state dict", where=str(path), expected="names and tensors")
    return dict(content)


def _fill(module: nn.Module, state: Mapping[str, Tensor], *, where: str, strict: bool = True) -> None:
    own = module.state_dict()
    wrong = [n for n in state if n in own and state[n].shape != own[n].shape]
    if wrong:
        shapes = f"{list(state[wrong[0]].shape)}, here {list(own[wrong[0]].shape)}"
        raise WeightsError(
            f"{wrong[0]} has shape {shapes}", where=where, todo="Check prefix, clip_prefix, dim, layers."
        )
    missing, surplus = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if strict and (missing or surplus):
        said = f"lacks {missing[0]}" if missing else f"brings {surplus[0]}"
        raise WeightsError(f"another mapper: it {said}", where=where, todo="Check `mapper` and `layers`.")
    module.load_state_dict(dict(state), strict=strict)
