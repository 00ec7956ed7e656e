"""Where weights lie: a path, an embedded model, or the Hugging Face hub; and what exactly was found there.

Knows places and file names. Opens no weights and knows no architecture.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from perdure.errors import WeightsError
from perdure.models.clip.archive import check_present
from perdure.models.named_weights import ALIASES, EMBEDDED, here, is_path

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""Files of weights in a folder, the best first."""
_DOWNLOADS = (
    ["model.safetensors", "model-*.safetensors"],
    ["pytorch_model.bin", "pytorch_model-*.bin"],
    ["open_clip_model.safetensors"],
    ["open_clip_pytorch_model.bin"],
)
"""What is fetched from the hub, one form of the weights only."""
_NETWORK_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""Base of all errors of the HTTP library that the hub's client uses (httpx or httpx2)."""


@dataclass(frozen=True)
class Source:
    """A folder or a file on this machine, and what it was asked for as."""

    name: str
    """What the settings said."""
    path: Path
    revision: str | None = None
    """Commit on the hub."""

    @property
    def folder(self) -> Path:
        """Where configuration, tokenizer and preprocessing lie."""
        return self.path if self.path.is_dir() else self.path.parent

    @cached_property
    def files(self) -> dict[str, str]:
        """SHA-256 of every weights file by name; reads the files once, when first asked."""
        return {path.name: _sha256(path) for path in self.weight_files()}

    def weight_files(self) -> list[Path]:
        """The files that hold the weights."""
        if self.path.is_file():
            return [self.path]
        first = next((n for n in WEIGHT_FILES if (self.path / n).is_file()), None)
        if first is None:
            return []
        if first.endswith(".index.json"):
            stem, _, suffix = first.removesuffix(".index.json").rpartition(".")
            return sorted(self.path.glob(f"{stem}-*.{suffix}"))
        return [self.path / first]

    @property
    def is_open_clip(self) -> bool:
        """Whether the weights are in open_clip's file, so that what open_clip says beside them counts."""
        return any(file.name.startswith("open_clip") for file in self.weight_files())

    def provenance(self) -> dict[str, Any]:
        """JSON-ready facts for the result card."""
        return {"weights": self.name, "revision": self.revision, "sha256": self.files}


def find(weights: str, *, revision: str | None = None) -> Source:
    """The source that `weights` names: existing path, embedded model, OpenAI's name, hub id, in this order.

    A model in the hub's cache is taken without asking the network.

    Raises:
        WeightsError: nothing there, or the hub cannot be reached and has no cached copy.
    """
    if path := here(weights):
        source = Source(weights, path)
    elif is_path(weights):
        raise WeightsError("no such file or folder", where=weights)
    else:
        repository = ALIASES.get(weights, weights)
        folder = _from_hub(repository, revision, asked=weights)
        source = Source(weights, folder, revision=folder.name)
    files = source.weight_files()
    if not files:
        raise WeightsError(
            "the folder holds no weights", where=str(source.path), expected=f"one of {', '.join(WEIGHT_FILES)}"
        )
    for file in files:
        check_present(file)
    return source


def place(name: str) -> str:
    """The folder of an embedded model, or the name as it is: a hub id or a folder."""
    embedded = EMBEDDED / name
    return str(embedded) if "/" not in name and embedded.is_dir() else name


def _from_hub(repository: str, revision: str | None, *, asked: str) -> Path:
    if "/" not in repository:
        raise WeightsError(
            "no such file, folder or embedded model",
            where=asked,
            expected="a path, a hub id such as openai/clip-vit-base-patch16, or " + ", ".join(ALIASES),
        )
    try:
        cached = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        if Source(asked, cached).weight_files():
            return cached
    except LocalEntryNotFoundError:
        pass
    except HFValidationError as error:
        raise WeightsError(f"neither a path nor a hub id ({error})", where=asked) from None
    try:
        for patterns in _DOWNLOADS:
            folder = Path(
                snapshot_download(
                    repository, revision=revision, allow_patterns=["*.json", "*.txt", *patterns], etag_timeout=5
                )
            )
            if Source(asked, folder).weight_files():
                return folder
    except LocalEntryNotFoundError:
        raise WeightsError(
            f"{repository} is not in the cache of this machine, and huggingface.co cannot be reached",
            where=asked,
            todo=f"On a machine with network type: hf download {repository}; then copy its folder and give its path.",
        ) from None
    except (_NETWORK_ERROR, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise WeightsError(f"the hub refused {repository} ({first})", where=asked) from None
    raise WeightsError(f"{repository} holds no weights that can be read", where=asked)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
