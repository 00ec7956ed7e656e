"""BLEU, ROUGE-L, CIDEr-D and CLIPScore of captions, as pure functions.

Knows tokenised captions (words with single spaces between them), reference lists and arrays of features. Does not know
records, files or how text is tokenised. The formulas are those of the COCO caption evaluation; numbers are fractions,
CIDEr-D on a scale where 10 is the most.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

Ngrams = Counter[tuple[str, ...]]
SCALE = 2.5
"""What CLIPScore multiplies a cosine by."""


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[float], list[list[float]]]:
    """BLEU-1 to 4 of the whole set, and of each caption ``[4][captions]``; the closest reference sets the length."""
    rows = [_bleu_counts(c, r) for c, r in zip(candidates, references, strict=True)]
    each = [_bleu(row, smooth=True) for row in rows]
    columns: Any = zip(*rows)
    totals: Any = tuple(np.sum(column, axis=0) for column in columns)
    whole = _bleu(totals, smooth=False) if rows else [0.0] * 4
    return whole, [list(column) for column in zip(*each)]


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """ROUGE-L of each caption: best precision and best recall over the references, beta 1.2."""
    return [_rouge(c.split(" "), [r.split(" ") for r in rs]) for c, rs in zip(candidates, references, strict=True)]


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]], *, sigma: float = 6.0) -> list[float]:
    """CIDEr-D of each caption; document frequencies come from these references, an image a document."""
    counted = [[_ngrams(text.split(), 4) for text in texts] for texts in references]
    frequency: Counter[tuple[str, ...]] = Counter(
        gram for texts in counted for gram in {g for counts in texts for g in counts}
    )
    documents = math.log(max(len(references), 1))
    weigh = _Weights(frequency, documents)
    scores = []
    for caption, texts in zip(candidates, counted, strict=True):
        own = weigh(_ngrams(caption.split(), 4))
        similar = [_similarity(own, weigh(text), sigma) for text in texts]
        scores.append(10.0 * float(np.mean([np.mean(s) for s in similar])) if similar else 0.0)
    return scores


def clip_scores(
    images: Float[np.ndarray, "captions dim"],
    captions: Float[np.ndarray, "captions dim"],
    references: Float[np.ndarray, "references dim"] | None = None,
    owner: Sequence[int] = (),
) -> tuple[Float[np.ndarray, " captions"], Float[np.ndarray, " captions"] | None]:
    """CLIPScore ``2.5 max(0, cos)`` of each caption, and RefCLIPScore if there are references.

    RefCLIPScore is the harmonic mean of CLIPScore and of the highest cosine with a reference of the caption (neither
    scaled nor cut at 0); 0 where both are 0.

    Args:
        owner: caption of each reference.
    """
    x, c = _unit(images), _unit(captions)
    score = np.maximum(SCALE * (x * c).sum(1), 0)
    if references is None:
        return score, None
    similar = reference_similarity(captions, references, owner)
    total = score + similar
    safe = np.where(total == 0, 1.0, total)
    return score, np.where(total == 0, 0.0, 2 * score * similar / safe)


def reference_similarity(
    captions: Float[np.ndarray, "captions dim"], references: Float[np.ndarray, "references dim"], owner: Sequence[int]
) -> Float[np.ndarray, " captions"]:
    """Highest cosine of each caption with its references."""
    cosines = _unit(captions) @ _unit(references).T
    mine = np.asarray(owner)[None] == np.arange(len(captions))[:, None]
    return np.where(mine, cosines, -np.inf).max(1)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _ngrams(words: Sequence[str], most: int) -> Ngrams:
    return Counter(tuple(words[i : i + n]) for n in range(1, most + 1) for i in range(len(words) - n + 1))


def _bleu_counts(candidate: str, references: Sequence[str]) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Matches and guesses by order, the caption's length, the closest reference's."""
    words = candidate.split()
    counts = _ngrams(words, 4)
    most: Ngrams = Counter()
    lengths = []
    for text in references:
        split = text.split()
        lengths.append(len(split))
        most |= _ngrams(split, 4)
    matches = np.zeros(4)
    for gram, count in counts.items():
        matches[len(gram) - 1] += min(count, most.get(gram, 0))
    guesses = np.array([max(0, len(words) - n) for n in range(4)], float)
    closest = min(lengths, key=lambda n: (abs(n - len(words)), n)) if lengths else 0
    return matches, guesses, len(words), closest


def _bleu(row: tuple[np.ndarray, np.ndarray, int, int], *, smooth: bool) -> list[float]:
    """Precisions of all orders so far, times the penalty for being short."""
    matches, guesses, length, reference = row
    tiny, small = 1e-15, 1e-9
    found, product = [], 1.0
    for k in range(4):
        product *= (float(matches[k]) + tiny) / (float(guesses[k]) + small)
        found.append(product ** (1 / (k + 1)))
    ratio = (length + tiny) / (reference + small)
    return [score * math.exp(1 - 1 / ratio) for score in found] if ratio < 1 else found


def _rouge(words: list[str], references: list[list[str]]) -> float:
    common = [_longest_common(reference, words) for reference in references]
    precision = max(n / len(words) for n in common)
    recall = max(n / len(reference) for n, reference in zip(common, references))
    if not precision or not recall:
        return 0.0
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        previous = row
        row = [0]
        for j, y in enumerate(b):
            row.append(previous[j] + 1 if x == y else max(previous[j + 1], row[j]))
    return row[-1]


class _Weights:
    """N-gram counts -> tf-idf by order, with their norms and the number of bigrams."""

    def __init__(self, frequency: Counter[tuple[str, ...]], documents: float) -> None:
        self.frequency, self.documents = frequency, documents

    def __call__(self, counts: Ngrams) -> tuple[list[dict[tuple[str, ...], float]], np.ndarray, int]:
        vectors: list[dict[tuple[str, ...], float]] = [{}, {}, {}, {}]
        for gram, count in counts.items():
            rarity = self.documents - math.log(max(1.0, self.frequency.get(gram, 0)))
            vectors[len(gram) - 1][gram] = count * rarity
        norms = np.sqrt([sum(v * v for v in vector.values()) for vector in vectors])
        return vectors, norms, sum(count for gram, count in counts.items() if len(gram) == 2)


def _similarity(own: tuple, other: tuple, sigma: float) -> np.ndarray:
    """Cosines by order, clipped by the reference and damped by the difference in length."""
    damped = math.exp(-((own[2] - other[2]) ** 2) / (2 * sigma**2))
    values = np.zeros(4)
    for n, (vector, reference) in enumerate(zip(own[0], other[0])):
        values[n] = sum(_clipped(vector, reference))
        if own[1][n] and other[1][n]:
            values[n] /= own[1][n] * other[1][n]
    return values * damped


def _clipped(vector: dict, reference: dict) -> Iterator[float]:
    for gram, value in vector.items():
        theirs = reference.get(gram, 0.0)
        yield min(value, theirs) * theirs
