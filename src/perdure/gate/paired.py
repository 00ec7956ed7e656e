"""Two answers to each of the same examples: how much one is better, and how sure that is.

Knows grades of one example before and after, in [0, 1]. Does not know what they grade.

Of right and wrong only the examples count on which the two differ: `lost` were right before and are wrong after, `won`
the other way round. The exact test is McNemar's (a binomial one, by scipy); the interval is Tango's score interval for
the difference of paired proportions (Tango, Statistics in Medicine 17, 1998, 891-908), which is right also where few or
no examples differ. Grades in between get a keyed paired bootstrap.

Examples of one group (a patient's pictures, a video's frames) stand or fall together, so that many of them say little
more than one. Right and wrong in groups get Tango's interval over as many examples as they are worth: all counts over
the design effect, the variance of the difference with groups over that without (Rao and Scott, Biometrics 48, 1992,
577-585); of grades in between whole groups are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from perdure.keys import key_seed

SURE = 1.6448536269514722
"""Quantile of the normal distribution for one-sided 95 %."""
DRAWS = 2000
FEWEST_GROUPS = 5
"""Below that nothing is known of how groups differ."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """After minus before, as shares: -0.04 are four points lost."""

    n: int
    before: float
    after: float
    low: float
    """One-sided 95 % lower bound of the difference."""
    high: float
    """One-sided 95 % upper bound."""
    p: float | None
    """Two-sided exact McNemar; None where grades lie between right and wrong, or examples in groups."""
    groups: int = 0
    """Of how many groups the examples are; 0: each stands for itself."""

    @property
    def value(self) -> float:
        return self.after - self.before


def compare(before: Sequence[float], after: Sequence[float], *key: object, groups: Sequence[str] = ()) -> Difference:
    """The difference of paired grades.

    Args:
        key: what the bootstrap's draws hang on.
        groups: of each example; empty: each stands for itself.
    """
    assert len(before) == len(after) > 0
    if len(set(groups)) < len(groups):
        return _of_groups(before, after, groups, *key)
    n, means = len(before), (math.fsum(before) / len(before), math.fsum(after) / len(after))
    if {*before, *after} <= {0.0, 1.0}:
        lost = sum(b > a for b, a in zip(before, after))
        won = sum(a > b for b, a in zip(before, after))
        low, high = interval(lost, won, n)
        return Difference(n=n, before=means[0], after=means[1], low=low, high=high, p=mcnemar(lost, won))
    drawn = np.random.default_rng(key_seed("gate", *key)).integers(0, n, (DRAWS, n))
    moved = (np.asarray(after) - np.asarray(before))[drawn].mean(axis=1)
    low, high = np.quantile(moved, (0.05, 0.95))
    return Difference(n=n, before=means[0], after=means[1], low=float(low), high=float(high), p=None)


def _of_groups(before: Sequence[float], after: Sequence[float], groups: Sequence[str], *key: object) -> Difference:
    moved = np.asarray(after, float) - np.asarray(before, float)
    n, (names, members) = len(moved), np.unique(np.asarray(groups), return_inverse=True)
    sizes, sums = np.bincount(members), np.bincount(members, weights=moved)
    if len(names) < FEWEST_GROUPS:
        low, high = -1.0, 1.0
    elif {*before, *after} <= {0.0, 1.0}:
        effect = design_effect(moved, members)
        low, high = interval(int((moved < 0).sum()) / effect, int((moved > 0).sum()) / effect, n / effect)
    else:
        drawn = np.random.default_rng(key_seed("gate", *key)).integers(0, len(names), (DRAWS, len(names)))
        low, high = map(float, np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), (0.05, 0.95)))
    means = (math.fsum(before) / n, math.fsum(after) / n)
    return Difference(n=n, before=means[0], after=means[1], low=low, high=high, p=None, groups=len(names))


def design_effect(moved: np.ndarray, members: np.ndarray) -> float:
    """How many examples of groups are worth one of its own: at least 1; where none differs, the mean size of a group,
    as if all of a group stood together.

    Args:
        moved: after minus before, of each example.
        members: number of its group, from 0.
    """
    n, count = len(moved), int(members.max()) + 1
    off = moved - moved.mean()
    alone = float((off**2).sum())
    if not alone:
        return n / count
    together = float((np.bincount(members, weights=off) ** 2).sum()) * count / (count - 1)
    return max(together / (alone * n / (n - 1)), 1.0)


def holm(ps: Sequence[float]) -> list[float]:
    """p of several tests, each so that it may be read alone (Holm, Scandinavian Journal of Statistics 6, 1979, 65-70).

    ``holm([0.01, 0.04, 0.03])`` is ``[0.03, 0.06, 0.06]``.
    """
    found, most = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        most = max(most, min((len(ps) - rank) * ps[i], 1.0))
        found[i] = most
    return found


def mcnemar(lost: int, won: int) -> float:
    """Two-sided exact p that `lost` and `won` are equally likely: ``mcnemar(10, 2) == 0.0386``; 1 where none differ."""
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0


def interval(lost: float, won: float, n: float) -> tuple[float, float]:
    """One-sided 95 % bounds of ``(won - lost) / n``: where Tango's score statistic is 1.645 and -1.645.

    With no example that differs, ``interval(0, 0, 200)`` is -z^2 / (n + z^2) = -1.33 % to 1.33 %.
    """
    estimate = (won - lost) / n
    low = _root(lambda d: _score(lost, won, n, d) - SURE, -1.0, estimate)
    high = _root(lambda d: _score(lost, won, n, d) + SURE, estimate, 1.0)
    return low, high


def _score(lost: float, won: float, n: float, d: float) -> float:
    """How many standard deviations the estimate lies above a difference `d`, the variance taken at `d`."""
    # The most likely share of lost examples if the difference is d: the larger root of Tango's equation 10.
    linear = -won - lost + (2 * n - won + lost) * d
    root = math.sqrt(max(linear**2 + 8 * n * lost * d * (1 - d), 0.0))
    share = (root - linear) / (4 * n)
    variance = n * (2 * share + d * (1 - d))
    distance = won - lost - n * d
    return (
        distance / math.sqrt(variance) if variance > 1e-15 else math.copysign(math.inf, distance) if distance else 0.0
    )


def _root(function: Callable[[float], float], left: float, right: float) -> float:
    """Where a function that falls from left to right is zero, by halving; an end where it has no zero."""
    for _ in range(60):
        middle = (left + right) / 2
        left, right = (middle, right) if function(middle) > 0 else (left, middle)
    return (left + right) / 2


def examples_needed(margin: float, *, differing: float = 0.05) -> int:
    """Examples that prove with 80 % power that no more than `margin` is lost where nothing is: 774 for 0.02.

    Args:
        differing: share of examples on which before and after differ, half of them lost.
    """
    return math.ceil((1.645 + 0.842) ** 2 * differing / margin**2)


def provable_margin(n: int, *, differing: float = 0.05) -> float:
    """The smallest margin that so many examples prove with 80 % power: 0.039 of 200."""
    return (1.645 + 0.842) * math.sqrt(differing / n)
