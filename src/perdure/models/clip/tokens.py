"""Text -> token ids as OpenAI's CLIP makes them: ``[SOT, words..., EOT, 0, 0...]``.

Knows cleaning, padding, cutting, and where the end-of-text token stands; the byte-pair encoding itself is a Hugging
Face tokenizer. Does not know models or prompts' templates.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerBase

from perdure.errors import DataError, MissingExtra, WeightsError

OPENAI_VOCABULARY = 49408
Truncate = Literal["no", "keep-eot", "drop-eot"]


class Tokenizer:
    """Token ids of a CLIP's text tower, and a count of the texts that had to be cut."""

    def __init__(self, encoder: PreTrainedTokenizerBase, *, context_length: int) -> None:
        self.context_length = context_length
        self.cut_texts = 0
        """How many over-long texts have been cut so far."""
        self._encoder = encoder
        sot, eot = encoder.bos_token_id, encoder.eos_token_id
        if not isinstance(sot, int) or not isinstance(eot, int):
            raise WeightsError("the tokenizer has no start or end token", where=str(encoder.name_or_path))
        self.sot, self.eot = sot, eot

    def __call__(self, texts: Sequence[str], *, truncate: Truncate = "no") -> Int[Tensor, "texts tokens"]:
        """Ids padded with 0 to the context length.

        Args:
            texts: any strings; cleaned (Unicode mended, HTML entities resolved, white space collapsed, lower case).
            truncate: what to do with a text over the context length: "no" raises; "keep-eot" cuts and ends with EOT
                (OpenAI); "drop-eot" only cuts (open_clip's first versions, LAVIS).

        Raises:
            DataError: a text is too long and `truncate` is "no".
        """
        ids = torch.zeros(len(texts), self.context_length, dtype=torch.int64)
        for row, words in enumerate(self.words(texts)):
            tokens = [self.sot, *words, self.eot]
            if len(tokens) > self.context_length:
                if truncate == "no":
                    raise DataError(
                        f"text of {len(tokens)} tokens: {texts[row][:60]!r}",
                        expected=f"at most {self.context_length} with start and end",
                        todo="Shorten it, or have it cut with truncate='keep-eot'.",
                    )
                self.cut_texts += 1
                tokens = tokens[: self.context_length]
                if truncate == "keep-eot":
                    tokens[-1] = self.eot
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids

    def save(self, folder: Path) -> None:
        """The Hugging Face tokenizer, as ``AutoTokenizer.from_pretrained`` reads it."""
        self._encoder.save_pretrained(folder)

    def words(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text without start, end and padding: what a prompt of learned vectors is put before."""
        if not texts:
            return []
        cleaned = [clean(text) for text in texts]
        return self._encoder(cleaned, add_special_tokens=False, padding=False, truncation=False)["input_ids"]


def clean(text: str) -> str:
    """OpenAI's cleaning: mended Unicode, HTML entities resolved twice, single spaces, lower case."""
    if not text.isascii() or not text.isprintable():
        text = _mend(text)
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def end_positions(ids: Int[Tensor, "texts tokens"], *, eot: int) -> Int[Tensor, " texts"]:
    """First position of `eot` in each row; where there is none, of the row's largest id (OpenAI's rule)."""
    is_end = ids == eot
    return torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1), ids.argmax(dim=1))


def cut(ids: Int[Tensor, "texts tokens"], *, eot: int) -> Int[Tensor, "texts kept"]:
    """The ids up to the last text's end. Exact, since no token attends to a later one."""
    if ids.shape[0] == 0:
        return ids
    return ids[:, : int(end_positions(ids, eot=eot).max()) + 1]


def from_folder(folder: Path | None, *, vocabulary: int, context_length: int) -> Tokenizer | None:
    """The tokenizer in a model folder; OpenAI's if there is none and the vocabulary has its size; else None."""
    files = ("tokenizer.json", "vocab.json")
    if folder is not None and any((folder / name).is_file() for name in files):
        try:
            encoder = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).split("\n")[0]
            raise WeightsError(f"its tokenizer cannot be read ({reason})", where=str(folder)) from None
        return Tokenizer(encoder, context_length=context_length)
    if vocabulary == OPENAI_VOCABULARY:
        return Tokenizer(openai_encoder(), context_length=context_length)
    return None


@lru_cache(maxsize=1)
def openai_encoder() -> CLIPTokenizer:
    """OpenAI's byte-pair encoding with 49,408 entries, from the merges beside this file."""
    packed = resources.files("perdure.models.clip").joinpath("openai_bpe.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode("utf-8").split("\n")
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(others)]
    entries = [*letters, *(a + "</w>" for a in letters), *(m.replace(" ", "") for m in merges)]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    assert len(entries) == OPENAI_VOCABULARY
    pairs = [tuple(merge.split(" ")) for merge in merges]
    return CLIPTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, merges=pairs)  # type: ignore[arg-type]


def _mend(text: str) -> str:
    try:
        import ftfy
    except ImportError:
        raise MissingExtra(
            f"text beyond plain ASCII ({text[:40]!r}) needs ftfy, as in OpenAI's CLIP", todo="pip install ftfy"
        ) from None
    return ftfy.fix_text(text)
