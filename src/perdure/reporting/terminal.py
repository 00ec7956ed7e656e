"""The report's tables for a terminal: aligned, nothing wider than it, and only what these runs have.

Knows the tables and columns of text. Does not know figures, nor which output is a terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from perdure.errors import printable
from perdure.reporting.markdown import cell, interval
from perdure.reporting.published import published
from perdure.reporting.tables import (
    Comparison,
    Group,
    Number,
    Summary,
    all_comparisons,
    all_numbers,
    differing,
    shown,
    warnings,
    winners,
)

INDENT = "  "
NARROWEST = 12
"""Fewest columns of a name."""


def terminal(groups: Sequence[Group], *, width: int) -> str:
    """Scores, published numbers, differences and settings that differ, in lines of at most `width` columns (a word that
    is longer is cut in two)."""
    parts = [
        _scores(groups, width),
        [line for text in warnings(groups) for line in _wrapped(text, width, first="! ")],
        *(_published(group, width) for group in groups),
        _differences(all_comparisons(groups), width),
        _settings(groups, width),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def aligned(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Rows whose first cell is a name, wrapped where the line is too narrow for it, and the others right-aligned."""
    rows = [[printable(text, keep="") for text in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(1, len(rows[0]))]
    room = max(width - sum(w + 2 for w in widths), NARROWEST)
    room = min(room, max(len(row[0]) for row in rows))
    lines = []
    for name, *values in rows:
        inner = " " * (len(name) - len(name.lstrip()) + 2)
        begun, *rest = textwrap.wrap(name, room, subsequent_indent=inner, drop_whitespace=True) or [""]
        numbers = "".join(f"  {value:>{w}}" for value, w in zip(values, widths))
        lines += [f"{begun:<{room}}{numbers}".rstrip(), *rest]
    return lines


def _scores(groups: Sequence[Group], width: int) -> list[str]:
    """One group: a line a number. Several: a line a group below each number."""
    numbers = all_numbers(groups)
    best = winners(groups, numbers)
    many = [one for group in groups for one in group.summaries.values()]
    with_spread, with_margin = any(one.spread is not None for one in many), any(one.margin is not None for one in many)

    def row(name: str, one: Summary, star: str = "") -> list[str]:
        margin = [f"± {cell(one.margin)}"] if with_margin else []
        spread = [cell(one.spread), str(one.n)] if with_spread else []
        return [name, f"{one.mean:.2f}{star}", *margin, *spread]

    head = ["mean" + " " * bool(best), *(["95 %"] if with_margin else []), *(["s", "n"] if with_spread else [])]
    rows = [[groups[0].label if len(groups) == 1 else "", *head]]
    for number in numbers:
        if len(groups) == 1:
            rows.append(row(INDENT + _titled(number), groups[0].summaries[number]))
            continue
        rows.append([_titled(number), *[""] * len(head)])
        for group in groups:
            star = "*" if best.get(number) == group.label else " " * bool(best)
            if number in group.summaries:
                rows.append(row(INDENT + group.label, group.summaries[number], star))
    notes = []
    if with_margin:
        notes.append("±: half of the 95 % interval of the mean (Student's t).")
    if with_spread:
        notes.append("s: standard deviation over n seeds.")
    if best:
        notes.append("*: better than every other, in at least three shared seeds, by bootstrap and t interval.")
    return [*aligned(rows, width), *([""] if notes else []), *_wrapped(" ".join(notes), width)]


def _published(group: Group, width: int) -> list[str]:
    found = published(group)
    if not found:
        return []
    rows = [["published beside ours" + f": {group.label}", "published", "ours", "less"]]
    for p in found:
        apart = "–" if p.difference is None else f"{p.difference:+.2f}"
        rows.append([INDENT + p.name, cell(p.value), cell(p.ours.mean if p.ours else None), apart])
    sources = dict.fromkeys("; ".join(filter(None, (p.source, p.note))) for p in found)
    return [*aligned(rows, width), *(line for s in sources if s for line in _wrapped(s, width, first=INDENT))]


def _differences(comparisons: Sequence[Comparison], width: int) -> list[str]:
    if not comparisons:
        return []
    lines = ["differences, paired by seed"]
    for c in comparisons:
        said = f"{c.b} − {c.a}, {c.number.title}: {'–' if c.mean is None else f'{c.mean:+.2f}'}"
        if c.bootstrap:
            said += f" (95 % bootstrap {interval(c.bootstrap)}, t {interval(c.student)}, n {len(c.seeds)})"
        said += f"; better: {c.winner}" if c.winner else f"; undecided: {c.reason}"
        lines += _wrapped(said, width, first=INDENT)
    return lines


def _settings(groups: Sequence[Group], width: int) -> list[str]:
    apart = differing([group.runs[0] for group in groups])
    if not apart:
        return []
    lines = ["settings that differ"]
    for name, values in apart.items():
        lines.append(f"{INDENT}{name}")
        for group, value in zip(groups, values):
            lines += _wrapped(f"{group.label}: {shown(value)}", width, first=INDENT * 2)
    return lines


def _titled(number: Number) -> str:
    return f"{number.title}{f' ({number.unit})' if number.unit else ''} {number.arrow}"


def _wrapped(text: str, width: int, *, first: str = "") -> list[str]:
    return list(_lines(printable(text, keep=""), width, first)) if text else []


def _lines(text: str, width: int, first: str) -> Iterator[str]:
    yield from textwrap.wrap(text, width, initial_indent=first, subsequent_indent=" " * (len(first) + 2))
