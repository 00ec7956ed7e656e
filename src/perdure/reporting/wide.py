"""A paper's table: methods down, metrics and streams across, published rows below ours; LaTeX, Markdown, CSV.

Knows groups of runs of several streams, and how a table is written. Does not know where runs lie. Bold is what the
report would make bold: better than every other method of the same stream in at least three shared seeds, with both
intervals of the differences apart from 0. A published number is never compared: it has no seeds to pair with.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from perdure.errors import DataError
from perdure.reporting import markdown, plain, tables
from perdure.reporting.load import Run
from perdure.reporting.published import match, published
from perdure.reporting.tables import Group, Number, Summary, shown
from perdure.settings.suggestions import nearest

Format = Literal["latex", "markdown", "csv"]
Spread = Literal["sd", "ci"]
DEFAULT = ("average", "last")
SUFFIXES = {"latex": "tex", "markdown": "md", "csv": "csv"}


@dataclass(frozen=True, kw_only=True)
class Value:
    """A number of a table."""

    one: Summary
    best: bool = False


@dataclass(kw_only=True)
class Line:
    """A method, or what is published of it."""

    label: str
    values: dict[tuple[str, str], Value] = field(default_factory=dict)
    """By metric and stream."""
    source: str = ""
    """Of published numbers; empty: ours."""


@dataclass(frozen=True, kw_only=True)
class Wide:
    """Lines, and the columns that they have."""

    metrics: list[str]
    """Titles with their direction."""
    streams: list[str]
    lines: list[Line]
    remarks: list[str]
    """What a reader must know of these runs."""


def wide(runs: Sequence[Run], metrics: Sequence[str] = ()) -> Wide:
    """The table of some runs.

    Args:
        metrics: ``average``, ``last``, ``forgetting`` ... of the headline, or metrics by name; those of `DEFAULT` that
            there are, if none is named.

    Raises:
        DataError: no run has a number that is asked for.
    """
    streams = _streams([run for run in runs if run.rows])
    together = {name: tables.groups(members) for name, members in streams.items()}
    labels = _labels([group for groups in together.values() for group in groups])
    ours: dict[str, Line] = {}
    theirs: dict[tuple[str, str], Line] = {}
    titles: dict[str, None] = {}
    for wanted in metrics or DEFAULT:
        found = [
            (name, group, number)
            for name, groups in together.items()
            for group in groups
            if (number := match(wanted, group)) is not None
        ]
        if metrics and not found:
            raise _unknown(wanted, [group for groups in together.values() for group in groups])
        for name, group, number in found:
            title = _title(number)
            titles[title] = None
            best = tables.winners(together[name], [number]).get(number) == group.label
            label = labels.get(_method(group), group.label) if group.label == group.runs[0].method else group.label
            line = ours.setdefault(label, Line(label=label))
            line.values[title, name] = Value(one=group.summaries[number], best=best)
            for each in published(group):
                if each.number == number:
                    source = "; ".join(filter(None, (each.source, each.note)))
                    fresh = Line(label=f"{label}, published", source=source or "not stated")
                    line = theirs.setdefault((label, source), fresh)
                    line.values[title, name] = Value(one=Summary(n=0, mean=float(each.value)))
    remarks = list(dict.fromkeys(text for groups in together.values() for text in tables.warnings(groups)))
    if not titles:
        raise DataError("no run has a number to show", where="report", expected="a finished task")
    return Wide(metrics=list(titles), streams=list(streams), lines=[*ours.values(), *theirs.values()], remarks=remarks)


def written(table: Wide, form: Format, spread: Spread) -> str:
    """The table as text, with a final newline."""
    return {"latex": _latex, "markdown": _markdown, "csv": _csv}[form](table, spread)


def rows(table: Wide, spread: Spread) -> list[list[str]]:
    """Heads, then a row a line, as plain text; a star is what is bold elsewhere."""
    columns = _columns(table)
    found = [["method", *_heads(table)]]
    for line in table.lines:
        values = [_said(line.values.get(key), spread).replace("**", "*") for key in columns]
        found.append([_marked(table, line), *values])
    return found


def caption(table: Wide, spread: Spread) -> str:
    """What stands behind the numbers, and their sources."""
    numbered = [f"[{i}] {source}" for i, source in enumerate(_sources(table), 1)]
    return " ".join([_caption(table, spread), *numbered])


def _streams(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by what they went through: the stream's settings and how tests ask. Named by the data, and where two have
    the same by what tells them apart."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        part = {
            key: value for key, value in tables.settings(run).items() if key.startswith(("stream", "evaluate.split"))
        }
        found.setdefault(repr(sorted(part.items())), []).append(run)
    members = list(found.values())
    names = [one[0].data or one[0].stream or "stream" for one in members]
    labels = []
    for one, name in zip(members, names):
        alike = [other[0] for other, same in zip(members, names) if same == name]
        apart = (
            [key for key in tables.differing(alike) if key.startswith(("stream", "evaluate.split"))]
            if alike[1:]
            else []
        )
        own = tables.settings(one[0])
        words = [f"{key.removeprefix('stream.')}={shown(own.get(key))}" for key in apart]
        labels.append(f"{name} ({', '.join(words)})" if words else name)
    return dict(zip(labels, members))


def _method(group: Group) -> str:
    """The settings of a group's method."""
    return repr(
        sorted((key, value) for key, value in tables.settings(group.runs[0]).items() if key.startswith("method"))
    )


def _labels(groups: Sequence[Group]) -> dict[str, str]:
    """Settings of methods that a stream tells apart -> their label, which holds for other streams, too."""
    return {_method(group): group.label for group in groups if group.label != group.runs[0].method}


def _title(number: Number) -> str:
    unit = f" ({number.unit})" if number.unit else ""
    return f"{number.title}{unit} {number.arrow}"


def _unknown(wanted: str, groups: Sequence[Group]) -> DataError:
    known = list(dict.fromkeys(name for group in groups for n in group.summaries for name in (n.aggregate, n.metric)))
    near = nearest(wanted, known)
    todo = f"Did you mean {near}?" if near else ""
    return DataError(f"no run has a number `{wanted}`", where="--metrics", expected=", ".join(known), todo=todo)


def _columns(table: Wide) -> list[tuple[str, str]]:
    """(metric, stream), those in which there is a number."""
    there = {key for line in table.lines for key in line.values}
    return [(m, s) for m in table.metrics for s in table.streams if (m, s) in there]


def _heads(table: Wide) -> list[str]:
    """Titles of the columns on one line: without what is the same in all."""
    parts = [(m if len(table.metrics) > 1 else "", s if len(table.streams) > 1 else "") for m, s in _columns(table)]
    return [": ".join(filter(None, pair)) or m for pair, (m, _) in zip(parts, _columns(table))]


def _caption(table: Wide, spread: Spread) -> str:
    """What stands behind the numbers."""
    parts = []
    if len(table.metrics) == 1:
        parts.append(f"{table.metrics[0][0].upper()}{table.metrics[0][1:]}.")
    if len(table.streams) == 1:
        parts.append(f"Stream: {table.streams[0]}.")
    counts = sorted({value.one.n for line in table.lines for value in line.values.values() if value.one.n})
    seeds = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    behind = (
        "the standard deviation over seeds"
        if spread == "sd"
        else "half of the 95 % interval of the mean (three seeds on)"
    )
    parts.append(
        f"Mean over {seeds} seed{'s' if counts[-1] > 1 else ''}" + (f", ± {behind}." if counts[-1] > 1 else ".")
    )
    if any(value.best for line in table.lines for value in line.values.values()):
        parts.append("Bold: better than every other method here in at least three shared seeds, by bootstrap and t.")
    return " ".join(parts)


def _said(value: Value | None, spread: Spread, *, tex: bool = False) -> str:
    if value is None:
        return "--" if tex else "–"
    one = value.one
    mean = f"{one.mean:.2f}"
    if value.best:
        mean = f"\\textbf{{{mean}}}" if tex else f"**{mean}**"
    margin = one.spread if spread == "sd" else one.margin
    sign = "$\\pm$" if tex else "±"
    return mean if margin is None else f"{mean} {sign} {margin:.2f}"


def _sources(table: Wide) -> list[str]:
    return list(dict.fromkeys(line.source for line in table.lines if line.source))


def _marked(table: Wide, line: Line) -> str:
    """The label, with the number of its source."""
    return f"{line.label} [{_sources(table).index(line.source) + 1}]" if line.source else line.label


def _markdown(table: Wide, spread: Spread) -> str:
    columns = _columns(table)
    rows = [[_marked(table, line), *(_said(line.values.get(key), spread) for key in columns)] for line in table.lines]
    parts = [
        markdown.table(["method", *_heads(table)], rows, right=range(1, len(columns) + 1)),
        _caption(table, spread),
    ]
    parts += ["\n".join(f"[{i}] {source}" for i, source in enumerate(_sources(table), 1))]
    parts += ["\n".join(f"> {text}" for text in table.remarks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _csv(table: Wide, spread: Spread) -> str:
    rows = [
        [line.label, metric, stream, v.one.mean, v.one.spread, v.one.margin, v.one.n, int(v.best), line.source]
        for line in table.lines
        for metric, stream in _columns(table)
        if (v := line.values.get((metric, stream))) is not None
    ]
    return plain.csv_text(("method", "metric", "stream", "mean", "sd", "ci", "n", "best", "source"), rows)


def _latex(table: Wide, spread: Spread) -> str:
    """A ``tabular`` for the package booktabs; what a reader must know stands in comments and a line below."""
    columns = _columns(table)
    lines = [f"% {text}" for text in table.remarks]
    lines += [f"\\begin{{tabular}}{{l{'r' * len(columns)}}}", "\\toprule"]
    if len(table.metrics) > 1 and len(table.streams) > 1:
        at, groups, rules = 2, [], []
        for metric in table.metrics:
            width = sum(m == metric for m, _ in columns)
            groups.append(f"\\multicolumn{{{width}}}{{c}}{{{_escaped(metric)}}}")
            rules.append(f"\\cmidrule(lr){{{at}-{at + width - 1}}}")
            at += width
        lines += [" & ".join(["", *groups]) + " \\\\", "".join(rules)]
        heads = [stream for _, stream in columns]
    else:
        heads = _heads(table)
    lines += [" & ".join(["method", *map(_escaped, heads)]) + " \\\\", "\\midrule"]
    ours = True
    for line in table.lines:
        if ours and line.source:
            ours = False
            lines.append("\\midrule")
        cells = [_said(line.values.get(key), spread, tex=True) for key in columns]
        lines.append(" & ".join([_escaped(_marked(table, line)), *cells]) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}", f"% {_caption(table, spread)}"]
    lines += [f"% [{i}] {source}" for i, source in enumerate(_sources(table), 1)]
    return "\n".join(lines) + "\n"


_TEX = {"↑": "$\\uparrow$", "↓": "$\\downarrow$", "−": "$-$", "\\": "\\textbackslash{}", "~": "\\textasciitilde{}"}
_TEX |= {"^": "\\textasciicircum{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}


def _escaped(text: str) -> str:
    return re.sub("[" + re.escape("".join(_TEX)) + "]", lambda found: _TEX[found[0]], text)
