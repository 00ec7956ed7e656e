"""SentencePiece's ``tokenizer.model`` as a tokenizer of the tokenizers library, which gives the same ids.

Knows the file's fields: pieces with scores and types, the trainer's and the normalizer's settings. What the tokenizers
library cannot express is refused by name. Knows no special tokens of a conversation. The package sentencepiece is not
needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from perdure.errors import WeightsError

SPACE = "▁"
"""What stands for a space in pieces."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE = 2
"""The trainer's `model_type`."""
_ALL = 1_000_000
_SPACES = normalizers.Replace(" ", SPACE)
_SAVE = "Save a tokenizer.json beside it (AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER))."


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its place is its id."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a ``tokenizer.model`` says."""

    pieces: list[Piece]
    where: str
    byte_fallback: bool = False
    charsmap: bytes = b""
    """Character replacements of the normalizer; empty: none ("identity")."""
    dummy_prefix: bool = True
    """A space is put before the text."""
    single_spaces: bool = True
    """Runs of spaces become one; those at the ends are dropped."""
    special: dict[str, int] = field(default_factory=dict)
    """Ids of "unk", "bos", "eos" and "pad"; -1: none."""

    def name(self, what: str) -> str | None:
        """The piece of a special token, or None."""
        i = self.special.get(what, -1)
        return self.pieces[i].text if 0 <= i < len(self.pieces) else None

    def texts(self, kind: int) -> list[str]:
        """The pieces of one type."""
        return [piece.text for piece in self.pieces if piece.kind == kind]


def read(path: Path) -> Model:
    """The model in a file. Raises as `parse`."""
    return parse(path.read_bytes(), where=str(path))


def parse(data: bytes, *, where: str) -> Model:
    """The model in a file's bytes. Raises WeightsError if there is none, or it says what cannot be done here."""
    fields = list(_fields(data, where))
    pieces = [_piece(data, where) for number, data in fields if number == 1]
    if not pieces or len({piece.text for piece in pieces}) != len(pieces):
        raise WeightsError("this is no SentencePiece model", where=where)
    trainer, normalizer, after = (
        {n: v for number, data in fields if number == part for n, v in _fields(data, where)} for part in (2, 3, 5)
    )
    names = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
    algorithm = trainer.get(3, 1)
    _refuse(algorithm != BPE, f"model_type is {names.get(algorithm, algorithm)}", "bpe, as Llama has", where)
    _refuse(bool(trainer.get(24)), "treat_whitespace_as_suffix is set", "spaces before words", where)
    _refuse(not normalizer.get(5, 1), "escape_whitespaces is not set", f"spaces written as {SPACE}", where)
    _refuse(bool(after.get(2)), "it has a denormalizer", "none", where)
    _refuse(UNUSED in {piece.kind for piece in pieces}, "it has pieces of type UNUSED", "none", where)
    return Model(
        pieces=pieces,
        where=where,
        byte_fallback=bool(trainer.get(35)),
        charsmap=normalizer.get(2, b""),
        dummy_prefix=bool(normalizer.get(3, 1)),
        single_spaces=bool(normalizer.get(4, 1)),
        special={name: _signed(trainer.get(n, i)) for name, n, i in _SPECIAL},
    )


_SPECIAL = (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2), ("pad", 43, -1))
"""Special token, its field in the trainer's settings, its id where nothing is said."""


def tokenizer(model: Model, *, dummy_prefix: bool, prefix_everywhere: bool) -> Tokenizer:
    """The tokenizer, without special tokens.

    Args:
        dummy_prefix: a space is put before the text.
        prefix_everywhere: also after each special token within it.
    """
    own = model.texts(USER_DEFINED)
    if own and dummy_prefix:
        first = ", ".join(repr(text) for text in own[:3])
        _refuse(True, f"it has user-defined symbols ({first}) and add_dummy_prefix", "one of the two", model.where)
    found = Tokenizer(_bpe(model))
    only_first = dummy_prefix and not prefix_everywhere
    found.normalizer = normalizers.Sequence(_normalizers(model, prefix=dummy_prefix, only_first=only_first))
    if only_first:
        # The first one gives the text its space, unless it begins with one: all others were replaced before.
        found.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
                pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False),
            ]
        )
    found.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", _ALL if model.single_spaces else 1, 0)] if dummy_prefix or model.single_spaces else [])
    )
    found.add_tokens([AddedToken(text, normalized=True, special=False) for text in own])
    found.add_special_tokens([AddedToken(text, normalized=False) for text in model.texts(CONTROL)])
    return found


def _normalizers(model: Model, *, prefix: bool, only_first: bool) -> list[Any]:
    steps: list[Any] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.single_spaces:
        ends = rf"[ {SPACE}]+\z"
        steps += [normalizers.Replace(Regex(ends if only_first else rf"\A +|{ends}"), "")]
        steps += [normalizers.Replace(Regex(" {2,}"), " ")]
        if only_first:
            return steps  # a space at the beginning stays: it is the text's own
    return [*steps, *([normalizers.Prepend(SPACE)] if prefix and not only_first else []), _SPACES]


def _bpe(model: Model) -> models.BPE:
    return models.BPE(
        vocab={piece.text: i for i, piece in enumerate(model.pieces)},
        merges=merges(model),
        unk_token=model.name("unk"),
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def merges(model: Model) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best first: by score.

    Of equal scores SentencePiece takes the leftmost. Ranks have no places, but a run of one character grows from its
    left end where longer pieces, and longer left parts, come first. Other pieces of equal score are refused.
    """
    normal = [piece for piece in model.pieces if piece.kind == NORMAL]
    known = {piece.text for piece in normal}
    lacking = next((p.text for p in normal if len(p.text) > 1 and not set(p.text) <= known), None)
    _refuse(lacking is not None, f"a character of the piece {lacking!r} is no piece", "all of them", model.where)
    longer = [piece for piece in normal if len(piece.text) > 1]
    ranked = sorted(longer, key=lambda piece: (-piece.score, -len(piece.text)))
    for score, group in groupby(ranked, key=lambda piece: piece.score):
        tied = [piece.text for piece in group]
        if len(tied) > 1 and any(len(set(text)) > 1 for text in tied):
            what = f"the pieces {tied[0]!r} and {tied[1]!r} share the score {score:g}"
            _refuse(True, what, "a score of its own for each", model.where)
    return [
        (text[:cut], text[cut:])
        for text in (piece.text for piece in ranked)
        for cut in range(len(text) - 1, 0, -1)
        if text[:cut] in known and text[cut:] in known
    ]


def _refuse(when: bool, what: str, expected: str, where: str) -> None:
    if when:
        raise WeightsError(
            f"this SentencePiece model cannot be read: {what}", where=where, expected=expected, todo=_SAVE
        )


def _piece(data: bytes, where: str) -> Piece:
    said = dict(_fields(data, where))
    try:
        return Piece(
            said.get(1, b"").decode("utf-8"), struct.unpack("<f", said.get(2, bytes(4)))[0], said.get(3, NORMAL)
        )
    except (AttributeError, UnicodeDecodeError, TypeError, struct.error):
        raise WeightsError("this is no SentencePiece model", where=where) from None


def _signed(value: int) -> int:
    """A negative int32 is stored as 64 bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(data: Any, where: str) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protocol-buffer message: integers for varints, bytes for the rest."""
    at = 0
    while isinstance(data, bytes) and at < len(data):
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
            raise WeightsError("this is no SentencePiece model", where=where)
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
