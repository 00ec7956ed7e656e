"""Methods down, test sets across, with the means that papers print: Markdown, CSV and LaTeX.

Knows groups of runs that were only tested, those in which each set was asked after each, and which test sets papers
draw together. Does not know figures. A mean over
sets is that of the sets' numbers, unweighed, seed by seed; it is rounded at the end. Corruptions of several severities
are drawn together by kind, and their mean error is 100 less their mean accuracy, without the weights of a reference
network.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal, NamedTuple

from perdure.metrics import continual, find
from perdure.reporting import markdown, plain
from perdure.reporting.load import Run
from perdure.reporting.tables import OF_SETS, Group, Summary, summarize

Spread = Literal["sd", "ci"]
OOD = ("A", "V", "R", "K")
"""The natural shifts of ImageNet, by the stream's short names."""
TEN = ("DTD", "Flower102", "Food101", "Cars", "SUN397", "Aircraft", "Pets", "Caltech101", "UCF101", "eurosat")
CORRUPTED = re.compile(r"(?P<set>C|CIFAR10C|CIFAR100C) (?P<kind>\w+) \d")
COSTS = ["ms_an_image", "peak_gigabytes"]
"""Of a test: time, and the most memory that the process, or the GPU, has held by its end."""
SHORT = {"C": "", "CIFAR10C": "CIFAR-10-C ", "CIFAR100C": "CIFAR-100-C "}


@dataclass(frozen=True)
class Wide:
    """A table of one metric: a column a test set and mean, a line a method."""

    metric: str
    columns: list[str]
    lines: list[tuple[str, list[Summary | None]]]
    """Label of a method, and its numbers."""


class Texts(NamedTuple):
    """A table as it is shown."""

    title: str
    head: list[str]
    rows: list[list[str]]


def tables(groups: Sequence[Group]) -> list[Wide]:
    """One table for each number that was measured on the test sets; of runs that have learned Transfer, Average and
    Last, if each set was asked after each; none where there is one set."""
    if not groups or not all(run.only_tests and len(run.tasks) > 1 for group in groups for run in group.runs):
        return [_of_sets(groups, name) for name in OF_SETS] if groups and all(map(_is_of_sets, groups)) else []
    names = list(dict.fromkeys(m for group in groups for run in group.runs for row in run.rows for m in row["values"]))
    names += COSTS
    return [table for name in names if (table := _table(groups, name)) is not None]


def as_texts(tables: Sequence[Wide], spread: Spread) -> list[Texts]:
    """Title, head and rows of each."""
    return [
        Texts(
            _title(wide),
            ["method", *wide.columns],
            [[label, *(_cell(one, spread) for one in cells)] for label, cells in wide.lines],
        )
        for wide in tables
    ]


def as_markdown(tables: Sequence[Wide], spread: Spread) -> str:
    """One section a metric."""
    parts = [
        f"### {one.title}\n\n" + markdown.table(one.head, one.rows, right=range(1, len(one.head)))
        for one in as_texts(tables, spread)
    ]
    return "\n\n".join([*parts, _caption(tables, spread)]) if parts else ""


def as_csv(tables: Sequence[Wide]) -> str:
    """One line a metric, method and column, with mean, standard deviation, half of the 95 % interval and seeds."""
    rows = [
        [wide.metric, label, column, one.mean, one.spread, one.margin, one.n]
        for wide in tables
        for label, cells in wide.lines
        for column, one in zip(wide.columns, cells)
        if one is not None
    ]
    return plain.csv_text(("metric", "method", "set", "mean", "sd", "ci", "n"), rows)


def as_latex(tables: Sequence[Wide], spread: Spread) -> str:
    """A ``tabular`` a metric, for the package booktabs."""
    parts = []
    for wide in tables:
        head = " & ".join(_escaped(text) for text in ("method", *wide.columns))
        lines = [
            " & ".join([_escaped(label), *(_cell(one, spread, tex=True) for one in cells)])
            for label, cells in wide.lines
        ]
        body = "".join(f"{line} \\\\\n" for line in lines)
        parts.append(
            f"% {_title(wide)}\n\\begin{{tabular}}{{l{'r' * len(wide.columns)}}}\n\\toprule\n{head} \\\\\n\\midrule\n"
            f"{body}\\bottomrule\n\\end{{tabular}}\n"
        )
    return "\n".join(parts)


def _table(groups: Sequence[Group], metric: str) -> Wide | None:
    found = [(group.label, _by_set(group, metric)) for group in groups]
    columns = list(dict.fromkeys(name for _, sets in found for name in sets))
    if not columns:
        return None
    tasks = [task for group in groups for task in group.runs[0].tasks if CORRUPTED.fullmatch(task)]
    means = _means(columns, {_column(task) for task in tasks}, accuracy=metric == "accuracy")
    lines = []
    for label, sets in found:
        cells = [summarize(list(sets[name].values())) if name in sets else None for name in columns]
        lines.append((label, cells + [_mean_of(sets, names, error=error) for _, names, error in means]))
    return Wide(metric, [*columns, *(title for title, _, _ in means)], lines)


def _is_of_sets(group: Group) -> bool:
    return any(number.aggregate == OF_SETS[0] for number in group.summaries)


def _of_sets(groups: Sequence[Group], name: str) -> Wide:
    """Transfer, Average or Last of each set, and in total."""
    columns = list(dict.fromkeys(task for group in groups for task in group.runs[0].tasks))
    lines = []
    for group in groups:
        values: dict[str, list[float]] = {}
        for run in group.runs[:1] if group.deterministic else group.runs:
            cells = continual.from_rows(run.rows, tasks=len(run.tasks), metric=run.headline, or_first=True)
            of_tasks = continual.zero_shot_transfer(cells.matrix)[f"{name.lower()}_of_tasks"]
            for task, value in zip(run.tasks, of_tasks):
                values.setdefault(task, []).extend([] if value is None else [value])
        total = [one for n, one in group.summaries.items() if (n.metric, n.aggregate) == (group.runs[0].headline, name)]
        cells_of = [summarize(values[task]) if values.get(task) else None for task in columns]
        lines.append((group.label, [*cells_of, *total]))
    return Wide(name, [*columns, "mean"], lines)


def _by_set(group: Group, metric: str) -> dict[str, dict[int, float]]:
    """Set -> seed -> value; severities of a corruption are averaged."""
    parts: dict[str, dict[int, list[float]]] = {}
    for position, run in enumerate(group.runs[:1] if group.deterministic else group.runs):
        seed = run.seed if run.seed is not None else -1 - position
        for asked, value in _costs(run, metric) if metric in COSTS else _scores(run, metric):
            parts.setdefault(_column(run.tasks[asked]), {}).setdefault(seed, []).append(value)
    return {name: {seed: mean(values) for seed, values in seeds.items()} for name, seeds in parts.items()}


def _scores(run: Run, metric: str) -> Iterator[tuple[int, float]]:
    """The sets, and what was measured there."""
    for row in run.rows:
        value = row["values"].get(metric)
        if isinstance(value, int | float) and row["after"] == row["asked"]:
            yield row["asked"], float(value)


def _costs(run: Run, name: str) -> Iterator[tuple[int, float]]:
    """The sets, and what their tests cost."""
    found = {e["asked"]: e for e in run.events if e.get("event") == "test" and e.get("n") and "seconds" in e}
    for asked, event in found.items():
        if 0 <= asked < len(run.tasks):
            yield asked, 1000 * event["seconds"] / event["n"] if name == COSTS[0] else event["peak_bytes"] / 1e9


def _column(task: str) -> str:
    corrupted = CORRUPTED.fullmatch(task)
    return f"{SHORT[corrupted['set']]}{corrupted['kind']}".replace("_", " ") if corrupted else task


def _means(columns: Sequence[str], kinds: Collection[str], *, accuracy: bool) -> list[tuple[str, list[str], bool]]:
    """Titles of means, the columns of each, and whether it is an error.

    Args:
        kinds: the columns that are corruptions.
    """
    found: list[tuple[str, list[str], bool]] = []
    for title, names in (("OOD mean", OOD), ("mean of ten sets", TEN)):
        if set(names) <= set(columns):
            found.append((title, list(names), False))
    corrupted = [name for name in columns if name in kinds]
    if len(corrupted) > 1 and accuracy:
        found.append(("mean corruption error", corrupted, True))
    return [("mean over sets", list(columns), False), *found]


def _mean_of(sets: Mapping[str, Mapping[int, float]], names: Sequence[str], *, error: bool) -> Summary | None:
    """The mean over sets of each seed that has them all."""
    if any(name not in sets for name in names):
        return None
    seeds = [seed for seed in sets[names[0]] if all(seed in sets[name] for name in names)]
    values = [mean(sets[name][seed] for name in names) for seed in seeds]
    return summarize([100 - value if error else value for value in values]) if values else None


def _cell(one: Summary | None, spread: Spread, *, tex: bool = False) -> str:
    if one is None:
        return "--" if tex else "–"
    margin = one.spread if spread == "sd" else one.margin
    sign = "$\\pm$" if tex else "±"
    return f"{one.mean:.2f}" + (f" {sign} {margin:.2f}" if margin is not None else "")


def _title(wide: Wide) -> str:
    entry = find(wide.metric)
    said = f" ({entry.unit} {entry.arrow})" if entry else ""
    return f"{wide.metric.replace('_', ' ')}{said} by test set"


def _caption(tables: Sequence[Wide], spread: Spread) -> str:
    most = max((one.n for wide in tables for _, cells in wide.lines for one in cells if one), default=1)
    if most < 2:
        return "One seed."
    said = (
        "standard deviation over seeds" if spread == "sd" else "half of the 95 % interval of the mean (three seeds on)"
    )
    return f"Up to {most} seeds. ±: {said}."


def _escaped(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
