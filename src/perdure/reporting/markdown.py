"""The report as Markdown, to be pasted into a README, an issue or a paper's draft.

Knows the tables. Does not know figures. The form is lm-eval's: direction as an arrow, ± before the interval.
"""

from __future__ import annotations

from collections.abc import Sequence

from perdure.reporting.history import COLUMNS, history
from perdure.reporting.published import published
from perdure.reporting.tables import (
    Comparison,
    Group,
    Number,
    all_comparisons,
    all_numbers,
    differing,
    shown,
    warnings,
    winners,
)


def markdown(groups: Sequence[Group], *, seen: str = "") -> str:
    """Score table, published numbers, differences and settings that differ. `seen`: sentences before them."""
    repeated = any(one.spread is not None for group in groups for one in group.summaries.values())
    parts = [*seen.splitlines(), score_table(groups), CAPTION if repeated else ""]
    parts += ["\n".join(f"> {text}" for text in warnings(groups))]
    parts += [_published(group) for group in groups]
    for run in [run for group in groups for run in group.runs]:
        if rows := history(run.folder):
            parts += [f"### Versions of {run.name}", table(COLUMNS, rows, right=(5, 6, 8))]
    comparisons = all_comparisons(groups)
    if comparisons:
        parts += ["### Differences, paired by seed", _comparisons(comparisons)]
    apart = differing([group.runs[0] for group in groups])
    if apart:
        rows = [[f"`{name}`", *(f"`{shown(v)}`" for v in values)] for name, values in apart.items()]
        parts += ["### Settings that differ", table(["setting", *(g.label for g in groups)], rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


CAPTION = (
    "n: seeds. ±: half of the 95 % interval of the mean by Student's t, from three seeds on. s: standard deviation "
    "over seeds. Bold: better than every other method in at least three shared seeds, with the bootstrap and the t "
    "interval of the paired difference both apart from 0."
)


def score_table(groups: Sequence[Group]) -> str:
    """``|method|metric| |mean| |95 % CI|s|n|``, one row a metric and method."""
    numbers = all_numbers(groups)
    best = winners(groups, numbers)
    rows = []
    for number in numbers:
        for group in groups:
            one = group.summaries.get(number)
            if one is None:
                continue
            mean = f"**{one.mean:.2f}**" if best.get(number) == group.label else f"{one.mean:.2f}"
            rows.append(
                [group.label, _titled(number), number.arrow, mean, "±", cell(one.margin), cell(one.spread), str(one.n)]
            )
    return table(["method", "metric", "", "mean", "", "95 % CI", "s", "n"], rows, right=(3, 5, 6, 7))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """A Markdown table; pipes in cells are escaped."""
    rule = ["---:" if i in right else "---" for i in range(len(columns))]
    lines = [columns, rule, *rows]
    return "\n".join(
        "|" + "|".join(str(text).replace("|", "\\|").replace("\n", " ") for text in line) + "|" for line in lines
    )


def cell(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(pair: tuple[float, float] | None) -> str:
    return "–" if pair is None else f"{pair[0]:+.2f} to {pair[1]:+.2f}"


def _titled(number: Number) -> str:
    return number.title + (f" ({number.unit})" if number.unit else "")


def _published(group: Group) -> str:
    rows = [
        [
            p.name,
            cell(p.value),
            cell(p.ours.mean if p.ours else None),
            f"{p.difference:+.2f}" if p.difference is not None else "–",
            "; ".join(filter(None, (p.source, p.note))),
        ]
        for p in published(group)
    ]
    if not rows:
        return ""
    return f"### Published beside ours: {group.label}\n\n" + table(
        ["number", "published", "ours", "ours − published", "source"], rows, right=(1, 2, 3)
    )


def _comparisons(comparisons: Sequence[Comparison]) -> str:
    rows = [
        [
            f"{c.b} − {c.a}",
            c.number.title,
            "–" if c.mean is None else f"{c.mean:+.2f}",
            interval(c.bootstrap),
            interval(c.student),
            str(len(c.seeds)),
            c.winner or f"undecided: {c.reason}",
        ]
        for c in comparisons
    ]
    return table(["difference", "metric", "mean", "95 % bootstrap", "95 % t", "n", "better"], rows, right=(2, 5))
