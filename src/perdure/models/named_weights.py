"""What `weights` names: an embedded model, a path, OpenAI's name or a hub id; and what is known of it before it loads.

Knows names, paths and the hub's cache on this machine. Fetches nothing, opens no weights; imports no torch.
"""

from __future__ import annotations

import re
from pathlib import Path

from perdure.files import tensor_files

EMBEDDED = Path(__file__).with_name("micro")
"""Folders of tiny models that come with perdure, by name."""
ALIASES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}
"""OpenAI's names -> the same weights on the hub."""
SUFFIXES = {".pt", ".pth", ".bin", ".safetensors", ".ckpt", ".npz"}
"""Of weights files."""
_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers?)\.(\d+)\.")


def is_path(weights: str) -> bool:
    """Whether it can be nothing but a path, be it there or not."""
    return Path(weights).suffix in SUFFIXES or weights.startswith(("/", ".", "~")) or weights.count("/") > 1


def here(weights: str) -> Path | None:
    """The path or the embedded model that it is; None: neither."""
    path = Path(weights).expanduser()
    if path.exists():
        return path
    return EMBEDDED / weights if "/" not in weights and (EMBEDDED / weights).is_dir() else None


def absent(weights: str, revision: str | None = None) -> str:
    """Why it cannot be loaded; empty where it is on this machine, or may be fetched."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if here(weights) is not None:
        return ""
    if is_path(weights):
        return "no such file or folder"
    name = ALIASES.get(weights, weights)
    if not constants.HF_HUB_OFFLINE or "/" not in name:
        return ""
    try:
        cached = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        cached = None
    except HFValidationError:
        return "neither a path nor a hub id"
    if cached is not None and any(file.suffix in SUFFIXES for file in cached.iterdir()):
        return ""
    return f"{name} is not in the cache of this machine, and HF_HUB_OFFLINE forbids to fetch it"


def count_blocks(weights: str, revision: str | None = None) -> int | None:
    """Blocks of the image tower, by the names of its tensors; None where they are not known before it loads."""
    names = tensor_files.shapes(str(here(weights) or ALIASES.get(weights, weights)), revision=revision)
    found = [int(match[1]) for name in names if "text_model" not in name and (match := _BLOCK.search(name))]
    return max(found) + 1 if found else None
