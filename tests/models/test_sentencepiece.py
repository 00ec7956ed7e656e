"""``tokenizer.model`` alone in a folder: the ids of the package sentencepiece, on odd configurations too."""

import io
import json
import struct
from functools import cache

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import WeightsError
from perdure.models.llava import spm
from perdure.models.llava.tokenizer import is_legacy, load_tokenizer

TEXTS = [
    *(" " * n + "Hello" for n in range(6)),
    "two  spaces",
    "",
    "  ",
    "trailing   ",
    "What is on the box?  Please answer.",
    "if x:\n    return 1",
    "tab\tand 漢字 🙂 ﬁ é",
    "a ▁ b▁",
    "x" + " " * 40 + "y",
]
CORPUS = [*(" " * n + "hello world of boxes" for n in range(9)), "if x:", "    return 1", "what is on the box?"] * 4


@cache
def trained(**options) -> bytes:
    """A small model; sentencepiece's own defaults but for `options`."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=out,
        vocab_size=330 if options.get("byte_fallback") else 80,
        hard_vocab_limit=False,
        minloglevel=4,
        **{"model_type": "bpe"} | options,
    )
    return out.getvalue()


LLAMA = {"byte_fallback": True, "remove_extra_whitespaces": False, "normalization_rule_name": "identity"}
LLAMA["allow_whitespace_only_pieces"] = True


def folder_of(path, model: bytes, **config):
    path.mkdir(exist_ok=True)
    (path / "tokenizer.model").write_bytes(model)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def ids_of(model: bytes, text: str) -> list[int]:
    return sentencepiece.SentencePieceProcessor(model_proto=model).encode(text)


@pytest.mark.parametrize(
    "options",
    [
        LLAMA,
        LLAMA | {"add_dummy_prefix": False},
        LLAMA | {"remove_extra_whitespaces": True},
        LLAMA | {"byte_fallback": False, "allow_whitespace_only_pieces": False},
        {},
        {"add_dummy_prefix": False, "byte_fallback": True},
        LLAMA | {"add_dummy_prefix": False, "user_defined_symbols": "box,<image>"},
    ],
    ids=["llama", "no prefix", "single spaces", "no bytes", "nfkc", "nfkc, no prefix", "own symbols"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_ids_are_those_of_sentencepiece(options, legacy, tmp_path):
    model = trained(**options)
    tokenizer = load_tokenizer(folder_of(tmp_path / "llm", model, legacy=legacy))
    assert [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS] == [ids_of(model, t) for t in TEXTS]
    assert is_legacy(tokenizer) == legacy


@given(st.text(st.sampled_from("  helowrd▁\n漢🙂bx?"), max_size=30))
@settings(max_examples=80, deadline=None)
def test_any_text_has_the_ids_of_sentencepiece(text):
    model = trained(**LLAMA)
    own = spm.tokenizer(spm.parse(model, where="llama"), dummy_prefix=True, prefix_everywhere=False)
    assert own.encode(text, add_special_tokens=False).ids == ids_of(model, text)
    assert own.decode(own.encode(text, add_special_tokens=False).ids) == text.replace("▁", " ")


def message(number: int, value) -> bytes:
    """One field of a protocol-buffer message: bytes, a float or an integer."""
    if isinstance(value, bytes):
        return bytes([number << 3 | 2, len(value)]) + value
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    return bytes([number << 3 & 127 | 128, number >> 4, value])


def by_hand(pieces, *, trainer: bytes = b"", normalizer: bytes = b"") -> bytes:
    """A BPE model of (text, score, type), with Llama's normalizer."""
    kinds = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *pieces]
    entries = [message(1, t.encode()) + message(2, score) + message(3, kind) for t, score, kind in kinds]
    parts = b"".join(message(1, entry) for entry in entries)
    return parts + message(2, message(3, 2) + trainer) + message(3, message(4, 0) + normalizer)


LETTERS = [(c, -100.0 - i, 1) for i, c in enumerate("▁Helo")]


def test_the_score_ranks_pieces_and_not_their_id(tmp_path):
    """As in Llama's vocabulary: runs of spaces have low ids and the lowest scores."""
    runs = [("▁" * n, -1e9, 1) for n in range(2, 9)]
    words = [("el", -1.0, 1), ("lo", -2.0, 1), ("▁H", -3.0, 1), ("ello", -4.0, 1), ("▁Hello", -5.0, 1)]
    model = by_hand([*runs, *words, *LETTERS])
    tokenizer = load_tokenizer(folder_of(tmp_path / "llm", model))
    texts = [" " * n + "Hello" + " " * (n // 2) for n in range(30)]
    assert [tokenizer(text).input_ids[1:] for text in texts] == [ids_of(model, text) for text in texts]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (by_hand([("el", -1.0, 1), ("lo", -1.0, 1), *LETTERS]), "'el' and 'lo' share the score -1"),
        (by_hand([("eX", -1.0, 1), *LETTERS]), "a character of the piece 'eX'"),
        (by_hand([("el", -1.0, 5), *LETTERS]), "UNUSED"),
        (by_hand([("el", 0.0, 4), *LETTERS]), r"user-defined symbols \('el'\) and add_dummy_prefix"),
        (by_hand(LETTERS, normalizer=message(5, 0)), "escape_whitespaces"),
        (by_hand(LETTERS, trainer=message(24, 1)), "treat_whitespace_as_suffix"),
        (by_hand(LETTERS, trainer=message(3, 1)), "model_type is unigram"),
        (b"no model", "no SentencePiece model"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(model, named, tmp_path):
    with pytest.raises(WeightsError, match=named):
        load_tokenizer(folder_of(tmp_path / "llm", model))


def test_added_tokens_beside_the_vocabulary_keep_their_ids(tmp_path):
    model = trained(**LLAMA)
    n = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    image = {"content": "<image>", "special": True}
    place = folder_of(tmp_path / "llm", model, added_tokens_decoder={str(n + 1): image}, pad_token="<pad>")
    (place / "added_tokens.json").write_text(json.dumps({"<pad>": n}))
    tokenizer = load_tokenizer(place)
    assert tokenizer("<image>hello  box</s>").input_ids == [1, n + 1, *_unprefixed(model, "hello  box"), 2]
    assert tokenizer.pad_token_id == n
    (place / "added_tokens.json").write_text(json.dumps({"<pad>": n + 7}))
    with pytest.raises(WeightsError, match="the added token '<image>' has the id"):
        load_tokenizer(place)


def _unprefixed(model: bytes, text: str) -> list[int]:
    """What follows a special token of a tokenizer that is not legacy: no space is put before it."""
    unknown = sentencepiece.SentencePieceProcessor(model_proto=model).encode("\x00" + text)
    return unknown[unknown.index(3) + 1 :]


@pytest.mark.parametrize(
    "config",
    [
        {"sp_model_kwargs": {"enable_sampling": True}},
        {"split_special_tokens": True},
        {"tokenizer_class": "T5Tokenizer"},
        {"do_lower_case": True},
    ],
)
def test_a_setting_beside_the_vocabulary_is_used_or_refused_by_name(config, tmp_path):
    with pytest.raises(WeightsError, match=next(iter(config))):
        load_tokenizer(folder_of(tmp_path / "llm", trained(**LLAMA), **config))


def test_settings_of_start_and_end_are_used(tmp_path):
    place = folder_of(tmp_path / "llm", trained(**LLAMA), add_bos_token=False, add_eos_token=True)
    tokenizer = load_tokenizer(place)
    assert tokenizer("box").input_ids == [*ids_of(trained(**LLAMA), "box"), 2]


def test_a_saved_tokenizer_is_read_back_as_it_was(tmp_path):
    tokenizer = load_tokenizer(folder_of(tmp_path / "llm", trained(**LLAMA), legacy=False))
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert [again(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]
    assert not is_legacy(again)
