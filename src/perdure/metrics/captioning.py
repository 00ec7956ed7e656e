"""Records and metrics of captioning: one text an image, several reference captions.

Knows predicted texts and the records made of them. Does not know models, streams or files. Every metric is a function
of the records, times 100 (CIDEr-D too, as it is always printed).

A record: ``{"id", "image_id", "caption", "references"}``: with `image_id` and `caption` alone it is an entry of a COCO
results file. `perdure prepare clipscore` adds `clipscore` and `refclipscore`. Text is tokenised by Stanford's program
where Java is there, else by a fallback: a table of scores says by which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from perdure.errors import DataError
from perdure.metrics import caption_scores as scores
from perdure.metrics import caption_words as words
from perdure.types import Example, Query

Record = dict[str, Any]


def records(captions: Any, examples: Sequence[Example], query: Query) -> list[Record]:
    """One record an image; ``captions``: one text an example."""
    texts = list(captions)
    assert len(texts) == len(examples) and all(isinstance(t, str) for t in texts), "one text an example"
    return [
        {
            "id": example.id,
            "image_id": image_id(example),
            "caption": text,
            "references": [] if example.target is None else list(example.target),
        }
        for text, example in zip(texts, examples, strict=True)
    ]


def image_id(example: Example) -> int | str:
    """The number that the annotations give the image, else the example's id: nothing is guessed from a name."""
    return example.inputs.get("image_id", example.id)


def coco_results(records: Iterable[Record]) -> list[dict[str, Any]]:
    """What the COCO evaluation reads: ``[{"image_id", "caption"}]``."""
    return [{"image_id": r["image_id"], "caption": r["caption"]} for r in records]


def cider(records: Iterable[Record]) -> float | None:
    """CIDEr-D; None of no records, as all of these, and of a single image, whose words are all in every document."""
    found = _tokenised(records)
    return _cider(*found) if found else None


def bleu_1(records: Iterable[Record]) -> float | None:
    """BLEU-1 of the whole set."""
    return _bleu(records, 1)


def bleu_4(records: Iterable[Record]) -> float | None:
    """BLEU-4 of the whole set."""
    return _bleu(records, 4)


def rouge_l(records: Iterable[Record]) -> float | None:
    """ROUGE-L."""
    found = _tokenised(records)
    return 100 * _mean(scores.rouge_l(*found)) if found else None


def meteor(records: Iterable[Record]) -> float | None:
    """METEOR 1.5; MissingExtra without Java."""
    words.require("METEOR")
    found = _tokenised(records)
    return 100 * float(words.meteor(*found)[0]) if found else None


def spice(records: Iterable[Record]) -> float | None:
    """SPICE; MissingExtra without Java or CoreNLP."""
    words.require("SPICE")
    found = _tokenised(records)
    return 100 * words.spice(*found) if found else None


def caption_scores(records: Iterable[Record]) -> dict[str, Any]:
    """All of these that can be computed here, and which tokenizer they rest on."""
    found = _tokenised(records)
    if not found:
        return {}
    whole, _ = scores.bleu(*found)
    table: dict[str, Any] = {f"bleu_{k}": 100 * value for k, value in enumerate(whole, 1)}
    table["rouge_l"] = 100 * _mean(scores.rouge_l(*found))
    table["cider"] = _cider(*found)
    if words.default_tokenizer() == "ptb":
        table["meteor"] = 100 * float(words.meteor(*found)[0])
    return table | {"ptb_tokenizer": float(words.chosen_tokenizer() == "ptb")}


def clipscore(records: Iterable[Record]) -> float | None:
    """Mean CLIPScore; DataError if the records have none yet."""
    return _kept(records, "clipscore")


def refclipscore(records: Iterable[Record]) -> float | None:
    """Mean RefCLIPScore; DataError if the records have none yet."""
    return _kept(records, "refclipscore")


def _kept(records: Iterable[Record], name: str) -> float | None:
    found = list(records)
    if missing := [r["id"] for r in found if name not in r]:
        raise DataError(
            f"the record has no {name}",
            where=str(missing[0]),
            todo="It needs a CLIP: perdure prepare clipscore PREDICTIONS --weights ViT-B/32",
        )
    return 100 * _mean([r[name] for r in found]) if found else None


def _bleu(records: Iterable[Record], order: int) -> float | None:
    found = _tokenised(records)
    return 100 * scores.bleu(*found)[0][order - 1] if found else None


def _cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float | None:
    return 100 * _mean(scores.cider_d(captions, references)) if len(captions) > 1 else None


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


def _tokenised(records: Iterable[Record]) -> tuple[list[str], list[list[str]]] | None:
    """Captions and references in words."""
    listed = list(records)
    for record in listed:
        if not record["references"]:
            raise DataError("there is no reference caption", where=str(record["id"]), expected="at least one")
    if not listed:
        return None
    captions = tuple(r["caption"] for r in listed)
    references = tuple(tuple(r["references"]) for r in listed)
    made, truth = _words(captions, references, words.chosen_tokenizer())
    return list(made), [list(texts) for texts in truth]


@lru_cache(maxsize=4)
def _words(captions: tuple[str, ...], references: tuple[tuple[str, ...], ...], tokenizer: words.Tokenizer):
    """Both sides through the tokenizer in one go; several metrics read the same records."""
    flat = [*captions, *(text for texts in references for text in texts)]
    split = iter(words.tokenize(flat, tokenizer))
    made = tuple(next(split) for _ in captions)
    return made, tuple(tuple(next(split) for _ in texts) for texts in references)
