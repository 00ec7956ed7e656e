"""The tokenizer of a Llama or Vicuna folder, also where there is only SentencePiece's ``tokenizer.model``.

Knows vocabulary files. Knows no conversations. The file is read here, so the package sentencepiece is not
needed; the BPE itself is the one of the tokenizers library.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perdure.errors import WeightsError


def load_tokenizer(folder: str | Path, *, legacy: bool | None = None) -> Any:
    """A fast tokenizer. `legacy` (Llama only): a space is put after special tokens too; None: as the folder says.

    Raises WeightsError if there is no tokenizer.
    """
    from transformers import AutoTokenizer, LlamaTokenizer

    path = Path(folder)
    if not path.is_dir():
        path = _fetched(str(folder))
    model = path / "tokenizer.model"
    if model.is_file() and not (path / "tokenizer.json").is_file():
        vocabulary, merges = read_sentencepiece(model)
        settings: dict[str, Any] = _settings(path) | ({} if legacy is None else {"legacy": legacy})
        return LlamaTokenizer(vocab=vocabulary, merges=merges, **settings)
    extra = {} if legacy is None else {"legacy": legacy}
    try:
        return AutoTokenizer.from_pretrained(str(path), **extra)
    except (OSError, ValueError) as error:
        raise WeightsError(f"no tokenizer can be read ({str(error).splitlines()[0]})", where=str(folder)) from None


def _fetched(name: str) -> Path:
    """The tokenizer's files of a hub id."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=["tokenizer*", "special_tokens_map.json", "config.json"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"no tokenizer can be fetched ({lines[0]})", where=name) from None


def is_legacy(tokenizer: Any) -> bool:
    """Whether the label mask counts a space after special tokens (see `conversation`)."""
    return bool(getattr(tokenizer, "legacy", True))


def read_sentencepiece(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and BPE merges, best first, of a ``tokenizer.model``."""
    pieces = [_text(data) for number, data in _fields(path.read_bytes(), path) if number == 1]
    vocabulary = {text: i for i, text in enumerate(pieces)}
    if len(vocabulary) != len(pieces) or not pieces:
        raise WeightsError("this is no SentencePiece model", where=str(path))
    return vocabulary, _merges(vocabulary)


def _merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others; ids fall with the score, so they give the rank."""
    merges = []
    for piece, rank in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((rank, len(left), len(right), left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def _settings(folder: Path) -> dict[str, Any]:
    import json

    file = folder / "tokenizer_config.json"
    found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    names = ("legacy", "add_bos_token", "add_eos_token", "clean_up_tokenization_spaces", "model_max_length")
    kept = {"add_bos_token": True} | {name: found[name] for name in names if found.get(name) is not None}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = found.get(name)
        if value:
            kept[name] = value["content"] if isinstance(value, dict) else value
    return kept


def _text(piece: bytes) -> str:
    """The text of a SentencePiece message: its first field."""
    return next((value.decode("utf-8") for number, value in _fields(piece, None) if number == 1), "")


def _fields(data: bytes, path: Path | None) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protocol-buffer message: integers for varints, bytes for the rest."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise WeightsError("this is no SentencePiece model", where=str(path))
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            break
    return value, at
