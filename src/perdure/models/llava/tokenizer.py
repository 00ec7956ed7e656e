"""The tokenizer of a Llama or Vicuna folder, also where there is only SentencePiece's ``tokenizer.model``.

Knows vocabulary files and the settings beside them: each is used, changes no ids, or is refused by name. Knows no
conversations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from perdure.errors import WeightsError

_TOKENS = ("unk", "bos", "eos", "pad", "sep", "cls", "mask")
_KEPT = frozenset(
    [
        "clean_up_tokenization_spaces",
        "model_max_length",
        "chat_template",
        "padding_side",
        "truncation_side",
        "model_input_names",
        "additional_special_tokens",
        "extra_special_tokens",
        "add_bos_token",
        "add_eos_token",
        "legacy",
    ]
) | {f"{name}_token" for name in _TOKENS}
"""Settings that go to the tokenizer as they are."""
_READ = frozenset(
    ["add_prefix_space", "added_tokens_decoder", "tokenizer_class", "sp_model_kwargs", "split_special_tokens"]
)
_NO_EFFECT = frozenset(
    [
        "name_or_path",
        "special_tokens_map_file",
        "tokenizer_file",
        "vocab_file",
        "use_fast",
        "use_default_system_prompt",
        "processor_class",
        "spaces_between_special_tokens",
        "device_map",
        "backend",
        "is_local",
        "max_length",
        "stride",
        "truncation_strategy",
    ]
)
"""Settings of other programs, which change no ids."""
_CLASSES = frozenset(["LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"])


def load_tokenizer(folder: str | Path, *, legacy: bool | None = None) -> Any:
    """A fast tokenizer. `legacy` (Llama only): a space is put after special tokens too; None: as the folder says.

    Raises WeightsError if there is no tokenizer, or its files say something that cannot be done.
    """
    from transformers import AutoTokenizer

    path = Path(folder)
    if not path.is_dir():
        path = _fetched(str(folder))
    if (path / "tokenizer.model").is_file() and not (path / "tokenizer.json").is_file():
        return _from_sentencepiece(path, legacy)
    extra = {} if legacy is None else {"legacy": legacy}
    try:
        return AutoTokenizer.from_pretrained(str(path), **extra)
    except (OSError, ValueError) as error:
        raise WeightsError(f"no tokenizer can be read ({str(error).splitlines()[0]})", where=str(folder)) from None


def is_legacy(tokenizer: Any) -> bool:
    """Whether the label mask counts a space after special tokens (see `conversation`)."""
    stated = getattr(tokenizer, "init_kwargs", {}).get("legacy", True)
    return bool(getattr(tokenizer, "legacy", stated))


def _fetched(name: str) -> Path:
    """The tokenizer's files of a hub id."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    names = ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "config.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=names))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsError(f"no tokenizer can be fetched ({lines[0]})", where=name) from None


def _from_sentencepiece(folder: Path, legacy: bool | None) -> Any:
    from transformers import PreTrainedTokenizerFast

    from perdure.models.llava import spm

    model = spm.read(folder / "tokenizer.model")
    said = _said(folder)
    everywhere = bool(said.get("legacy", False) if legacy is None else legacy)
    stated = said.get("add_prefix_space")
    prefix = model.dummy_prefix if stated is None else bool(stated)
    backend = spm.tokenizer(model, dummy_prefix=prefix, prefix_everywhere=everywhere)
    for i, token in sorted(_added(folder, said)):
        if i >= len(model.pieces):
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != i:
            raise WeightsError(
                f"the added token {token.content!r} has the id {i}",
                where=str(folder),
                expected=f"{backend.token_to_id(token.content)}, which follows from the vocabulary",
            )
    own = {f"{name}_token": model.name(name) for name in ("unk", "bos", "eos", "pad")}
    settings = {"add_bos_token": True, "clean_up_tokenization_spaces": False} | own
    settings |= {name: _token(said[name]) for name in _KEPT if said.get(name) is not None}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **settings | {"legacy": everywhere})
    tokenizer.legacy = everywhere  # type: ignore[attr-defined]
    return tokenizer


def _said(folder: Path) -> dict[str, Any]:
    """The settings in ``tokenizer_config.json``, after those in ``special_tokens_map.json``."""
    from perdure.models.clip.transform import read_json

    file, tokens = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    said = read_json(file) if file.is_file() else {}
    unknown = sorted(said.keys() - _KEPT - _READ - _NO_EFFECT)
    if unknown:
        raise WeightsError(
            f"the setting {unknown[0]} is unknown here",
            where=str(file),
            todo="Save a tokenizer.json beside it, or drop the setting.",
        )
    kind = said.get("tokenizer_class", "LlamaTokenizer")
    for wrong, what in (
        (kind not in _CLASSES, f"tokenizer_class is {kind!r}"),
        (bool(said.get("sp_model_kwargs")), f"sp_model_kwargs is {said.get('sp_model_kwargs')}"),
        (bool(said.get("split_special_tokens")), "split_special_tokens is set"),
    ):
        if wrong:
            raise WeightsError(what, where=str(file), expected="a LlamaTokenizer without sampling or splitting")
    return (read_json(tokens) if tokens.is_file() else {}) | said


def _added(folder: Path, said: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    """(id, token) of ``added_tokens.json`` and of the setting `added_tokens_decoder`, which says more."""
    from tokenizers import AddedToken

    from perdure.models.clip.transform import read_json

    file = folder / "added_tokens.json"
    found: dict[int, Any] = {}
    try:
        for content, i in (read_json(file) if file.is_file() else {}).items():
            found[int(i)] = AddedToken(content, normalized=False, special=False)
        for i, facts in said.get("added_tokens_decoder", {}).items():
            how = {name: bool(facts.get(name, False)) for name in ("lstrip", "rstrip", "single_word", "special")}
            found[int(i)] = AddedToken(facts["content"], normalized=False, **how)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise WeightsError("its added tokens are not of the form {id: {content: ...}}", where=str(folder)) from None
    yield from found.items()


def _token(value: Any) -> Any:
    """A special token is a string, or a mapping with its content."""
    return value["content"] if isinstance(value, Mapping) and "content" in value else value
