"""Are probabilities right: calibration, proper scores, and whether confidence tells wrong and unknown apart.

Knows records of classification and numpy arrays. Does not know models. Guo et al. 2017 (ECE), Mukhoti et al. 2020
(adaptive ECE), Geifman et al. 2019 (AURC). A method whose scores are not logits has no probabilities: then only the
rank statistics mean anything. Means over test sets are means of these numbers, never of pooled records.

By hand, probabilities (.95 .03 .02), (.10 .85 .05), (.25 .20 .55), (.35 .33 .32) with targets 0, 0, 2, 2: the first and
the third are right, each in a bin of its own, and ECE is (.05 + .85 + .45 + .35) / 4 = 42.5 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from perdure.metrics.classification import known

Record = dict[str, Any]
BINS = 15
Values = Float[np.ndarray, " examples"]
Truths = Bool[np.ndarray, " examples"]


# -- of records ---------------------------------------------------------------------------------------------


def ece(records: Iterable[Record]) -> float | None:
    """Expected calibration error in percent, 15 bins of equal width; None of no records, as all of these."""
    return _percent(expected_error, records)


def ece_20(records: Iterable[Record]) -> float | None:
    """As `ece`, with 20 bins."""
    return _percent(lambda sure, right: expected_error(sure, right, bins=20), records)


def adaptive_ece(records: Iterable[Record]) -> float | None:
    """As `ece`, with 15 groups of (nearly) equally many examples, in the order of confidence."""
    return _percent(equal_mass_error, records)


def mce(records: Iterable[Record]) -> float | None:
    """The largest gap between confidence and accuracy in a bin that is not empty, in percent."""
    return _percent(lambda sure, right: max(gap for _, gap in _gaps(sure, right, bins=BINS)), records)


def overconfidence(records: Iterable[Record]) -> float | None:
    """Mean confidence less accuracy, in percent."""
    return _percent(lambda sure, right: float(sure.mean() - right.mean()), records)


def brier(records: Iterable[Record]) -> float | None:
    """Mean over examples of the summed squared differences between probabilities and the truth."""
    return _mean([r["brier"] for r in known(records)])


def nll(records: Iterable[Record]) -> float | None:
    """Mean negative log probability of the target, in nats; None where a target has none."""
    return _mean([r["nll"] for r in known(records)])


def auroc_wrong(records: Iterable[Record]) -> float | None:
    """Probability, in percent, that a right answer is more confident than a wrong one; None unless there are both."""
    sure, right = _confidence(records)
    return _hundred(auroc(sure[right], sure[~right]))


def fpr95_wrong(records: Iterable[Record]) -> float | None:
    """Percent of wrong answers that are as confident as 95 percent of right ones."""
    sure, right = _confidence(records)
    return _hundred(false_positives(sure[right], sure[~right]))


def aurc(records: Iterable[Record]) -> float | None:
    """Mean over k of the error rate among the k most confident, in percent."""
    return _percent(risk_coverage, records)


def auroc_unknown(records: Iterable[Record]) -> float | None:
    """Probability, in percent, that an example of a known class is more confident than one of an unknown class."""
    return _hundred(auroc(*_parted(records, "confidence")))


def auroc_unknown_energy(records: Iterable[Record]) -> float | None:
    """As `auroc_unknown`, by energy."""
    return _hundred(auroc(*_parted(records, "energy")))


def auroc_unknown_logit(records: Iterable[Record]) -> float | None:
    """As `auroc_unknown`, by the highest logit."""
    return _hundred(auroc(*_parted(records, "logit")))


def fpr95_unknown(records: Iterable[Record]) -> float | None:
    """Percent of examples of unknown classes that are as confident as 95 percent of the known."""
    return _hundred(false_positives(*_parted(records, "confidence")))


def aupr_known(records: Iterable[Record]) -> float | None:
    """Average precision, in percent, with known classes as what is looked for."""
    return _hundred(average_precision(*_parted(records, "confidence")))


def aupr_unknown(records: Iterable[Record]) -> float | None:
    """Average precision, in percent, with unknown classes as what is looked for, the least confident first."""
    inside, outside = _parted(records, "confidence")
    return _hundred(average_precision(-outside, -inside))


# -- of arrays ----------------------------------------------------------------------------------------------


def expected_error(confidence: Values, right: Truths, *, bins: int = BINS) -> float:
    """``sum n_b / N |accuracy_b - mean confidence_b|`` over bins ``(j / bins, (j + 1) / bins]``."""
    return sum(count * gap for count, gap in _gaps(confidence, right, bins=bins)) / len(confidence)


def bin_of(confidence: Values, *, bins: int = BINS) -> np.ndarray:
    """The bin of each confidence, from 0; one on an edge belongs to the lower bin; 0 to none (-1)."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    return np.searchsorted(edges, np.minimum(confidence, 1.0), side="left") - 1


def equal_mass_error(confidence: Values, right: Truths, *, bins: int = BINS) -> float:
    """As `expected_error` over groups that differ by one example at most, the larger first; N groups if N < bins."""
    order = np.argsort(confidence, kind="stable")
    groups = [group for group in np.array_split(order, min(bins, len(order))) if len(group)]
    gaps = (len(g) * abs(right[g].mean() - confidence[g].mean()) for g in groups)
    return float(sum(gaps)) / len(confidence)


def interpolated_error(confidence: Values, right: Truths, *, bins: int = BINS) -> float:
    """Equal mass as most published code has it: bins between interpolated quantiles, ``(low, high]``. The smallest
    confidence falls in no bin."""
    count = len(confidence)
    edges = np.interp(np.linspace(0, count, bins + 1), np.arange(count), np.sort(confidence))
    total = 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - confidence[inside].mean())
    return float(total) / count


def auroc(positive: Values, negative: Values) -> float | None:
    """Probability that a positive is higher than a negative, ties counted half; None unless there are both."""
    if not len(positive) or not len(negative):
        return None
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    upto = np.searchsorted(ordered, positive, side="right")
    return float((below + upto).sum()) / (2 * len(positive) * len(negative))


def false_positives(positive: Values, negative: Values, *, share: float = 0.95) -> float | None:
    """Share of negatives that are at least as high as the k-th highest positive, ``k = ceil(share n)``."""
    if not len(positive) or not len(negative):
        return None
    threshold = np.sort(positive)[::-1][math.ceil(share * len(positive)) - 1]
    return float((negative >= threshold).mean())


def risk_coverage(confidence: Values, right: Truths) -> float:
    """Area under the curve of error rate against coverage, the most confident first."""
    wrong = ~right[np.argsort(-confidence, kind="stable")]
    return float((np.cumsum(wrong) / np.arange(1, len(wrong) + 1)).mean())


def average_precision(positive: Values, negative: Values) -> float | None:
    """``sum (R_k - R_{k-1}) P_k`` over distinct thresholds, the highest first."""
    if not len(positive) or not len(negative):
        return None
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    hits = len(positive) - np.searchsorted(np.sort(positive), thresholds, side="left")
    others = len(negative) - np.searchsorted(np.sort(negative), thresholds, side="left")
    steps = np.diff(hits / len(positive), prepend=0.0)
    return float((steps * hits / (hits + others)).sum())


def _gaps(confidence: Values, right: Truths, *, bins: int) -> list[tuple[int, float]]:
    """Examples and gap between accuracy and confidence of each bin that is not empty."""
    places = bin_of(confidence, bins=bins)
    found = [places == b for b in range(bins)]
    return [(int(m.sum()), abs(float(right[m].mean() - confidence[m].mean()))) for m in found if m.any()]


def _confidence(records: Iterable[Record]) -> tuple[Values, Truths]:
    """Confidence, and whether the answer was right, of examples of known classes."""
    rows = known(records)
    sure = np.array([r["confidence"] for r in rows], dtype=np.float64)
    return sure, np.array([r["predicted"] == r["target"] for r in rows], dtype=bool)


def _parted(records: Iterable[Record], field: str) -> tuple[Values, Values]:
    """A field of the examples of known classes, and of those of unknown ones."""
    rows = list(records)
    parts = ([r[field] for r in rows if (r["target"] is None) == outside] for outside in (False, True))
    inside, outside = (np.array(part, dtype=np.float64) for part in parts)
    return inside, outside


def _percent(measure: Any, records: Iterable[Record]) -> float | None:
    sure, right = _confidence(records)
    return 100.0 * float(measure(sure, right)) if len(sure) else None


def _mean(values: list[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found and len(found) == len(values) else None


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100.0 * value
