"""Which figures a report has, and what each shows of the groups of runs.

Knows the accuracy matrix and the events of runs. Does not know how lines look (`drawing`), HTML, or statistics
beyond `tables`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from perdure.metrics import METRICS, continual
from perdure.reporting import drawing, gates, tables
from perdure.reporting.drawing import Curve, Figure
from perdure.reporting.load import Run
from perdure.reporting.tables import Group, summarize

WHOLE = (0.0, 100.0)
"""Ends of a percentage: no axis and no interval goes beyond."""
NO_SHARE = ("cider",)
"""Metrics in percent that may exceed 100."""
PANELS = 12
"""Most tasks that get a panel of their own."""


def all_figures(groups: Sequence[Group]) -> list[Figure]:
    """Every figure for which these runs have the data."""
    drawn = [accuracy_curve(groups), *(accuracy_matrix(groups, i) for i in range(len(groups)))]
    drawn += [curve_per_task(groups), forgetting_per_task(groups), retention_curves(groups), gap_curves(groups)]
    drawn += [seconds_per_task(groups)]
    return [figure for figure in drawn if figure is not None] + gates.gate_figures(groups)


def accuracy_curve(groups: Sequence[Group]) -> Figure | None:
    """Accuracy over all tasks seen so far, after each task; of each task alone where past ones were not tested."""
    seen = [[continual.step_accuracies(m.matrix, counts=m.counts) for m in _cells(g)] for g in groups]
    title, horizontal = "Accuracy on everything learned so far", "tasks learned"
    if not any(sum(v is not None for v in curve) > 1 for curves in seen for curve in curves):
        seen = [[_plain(np.diagonal(m.matrix)) for m in _cells(g)] for g in groups]
        title, horizontal = "Accuracy on each task", "task"
    tasks = max((len(g.runs[0].tasks) for g in groups), default=0)
    if tasks < 2 or not any(v is not None for curves in seen for curve in curves for v in curve):
        return None
    return _lines("curve", title, groups, seen, horizontal=horizontal, vertical=_unit_label(groups))


def accuracy_matrix(groups: Sequence[Group], index: int) -> Figure | None:
    """Heat map of one group's mean accuracy: a row after each task, a column a tested task."""
    every = [_mean_matrix(g) for g in groups]
    matrix, names = every[index], groups[index].runs[0].tasks
    if matrix is None or len(names) < 2:
        return None
    known = np.concatenate([m[~np.isnan(m)] for m in every if m is not None])
    low, high = 10 * math.floor(known.min() / 10), 10 * math.ceil(known.max() / 10)
    size = len(names)
    canvas, axes = drawing.canvas(height=min(5.6, 1.6 + 0.34 * size))
    drawing.heat_map(axes, matrix, low, max(high, low + 10))
    ticks = drawing.short(names) if size <= 8 else [str(i + 1) for i in range(size)]
    every_nth = max(1, math.ceil(size / 20))
    places = np.arange(0, size, every_nth)
    crowded = size <= 8 and max(map(len, ticks)) > 6
    axes.set_xticks(
        places + 0.5, ticks[::every_nth], rotation=30 if crowded else 0, ha="right" if crowded else "center"
    )
    axes.set_yticks(places + 0.5, ticks[::every_nth])
    axes.set_xlabel("tested on task")
    axes.set_ylabel("after learning task")
    label = groups[index].label
    title = "Accuracy matrix" + (f": {label}" if len(groups) > 1 else "")
    final = matrix[-1][~np.isnan(matrix[-1])]
    alt = f"Heat map of the accuracy of {label}, {size} by {size} tasks, from {known.min():.1f} to {known.max():.1f}."
    if final.size:
        alt += f" After the last task the lowest is {final.min():.1f}, the highest {final.max():.1f}."
    before = [m.initial for m in _cells(groups[index]) if m.initial is not None]
    rows: list[list] = [["before the first", *_plain(np.mean(before, axis=0))]] if before else []
    rows += [[f"after {name}", *_plain(row)] for name, row in zip(names, matrix)]
    note = f"Mean over {len(groups[index].runs)} seeds." if len(groups[index].runs) > 1 else ""
    return drawing.finish(f"matrix-{index + 1}", title, alt, canvas, ["", *names], rows, note)


def curve_per_task(groups: Sequence[Group]) -> Figure | None:
    """One panel a task: how its accuracy fares while later tasks are learned."""
    matrices = [[m.matrix for m in _cells(g)] for g in groups]
    names = groups[0].runs[0].tasks
    if any(len(g.runs[0].tasks) != len(names) for g in groups):
        return None
    watched = [j for j in range(len(names)) if any((~np.isnan(m[:, j])).sum() > 1 for each in matrices for m in each)]
    if not watched:
        return None
    shown = [watched[round(i)] for i in np.linspace(0, len(watched) - 1, min(len(watched), PANELS))]
    across = min(3, len(shown))
    down = math.ceil(len(shown) / across)
    canvas, panels = drawing.canvas(height=0.7 + 1.3 * down, panels=(down, across))
    rows, ends = [], _ends(groups)
    for panel, task in zip(panels, shown):
        for g, (group, each) in enumerate(zip(groups, matrices)):
            middle, low, high = _band([_plain(m[:, task]) for m in each], ends)
            drawing.draw_curve(panel, np.arange(1, len(names) + 1), middle, low, high, style=g)
            rows += [[names[task], group.label, t + 1, v] for t, v in enumerate(middle) if v is not None]
        panel.set_title(drawing.short([names[task]], 18)[0], fontsize=9.5)
        drawing.whole_ticks(panel, len(names), most=5)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    for panel in panels[max(0, len(shown) - across) : len(shown)]:  # the lowest of each column
        panel.tick_params(labelbottom=True)
        panel.set_xlabel("tasks learned")
    drawing.legend(canvas, [group.label for group in groups])
    alt = f"{len(shown)} panels, one a task: accuracy after each later task" + _of(groups)
    for panel in panels[: len(shown)]:
        drawing.keep_within(panel, "y", ends)
    some = f"{len(shown)} of {len(watched)} tasks." if len(shown) < len(watched) else ""
    note = " ".join(filter(None, (some, _band_note(groups, cut=_cut(groups)))))
    columns = ["task", "method", "tasks learned", "accuracy"]
    return drawing.finish("per-task", "How each task fares later", alt, canvas, columns, rows, note)


def forgetting_per_task(groups: Sequence[Group]) -> Figure | None:
    """For each past task: its best earlier accuracy less the final one."""
    lost = [[continual.forgetting_per_task(m.matrix) for m in _cells(g)] for g in groups]
    names = groups[0].runs[0].tasks[:-1]
    same = all(len(curve) == len(names) for curves in lost for curve in curves)
    if not names or not same or not any(v is not None for curves in lost for curve in curves for v in curve):
        return None
    canvas, axes = drawing.canvas(height=min(7.0, 1.5 + 0.3 * len(names)))
    places, rows, ends = np.arange(len(names)), [], _ends(groups)
    for g, (group, curves) in enumerate(zip(groups, lost)):
        middle, low, high = _band(curves, (-ends[1], ends[1]))
        at = places + 0.16 * (g - (len(groups) - 1) / 2)
        drawing.draw_dots(axes, at, middle, low, high, style=g)
        rows += [[name, group.label, v] for name, v in zip(names, middle)]
    axes.axvline(0, color=drawing.INK, linewidth=0.8)
    every_nth = max(1, math.ceil(len(names) / 30))
    axes.set_yticks(places[::every_nth], drawing.short(names)[::every_nth])
    axes.invert_yaxis()
    axes.set_xlabel("points lost at the end (less is better)")
    drawing.legend(canvas, [group.label for group in groups])
    alt = "Points of accuracy that each past task lost by the end" + _of(groups)
    drawing.keep_within(axes, "x", (-ends[1], ends[1]))
    note = _band_note(groups, "Bars", cut="100" if _cut(groups) else "")
    return drawing.finish("forgetting", "Forgetting", alt, canvas, ["task", "method", "points lost"], rows, note)


def retention_curves(groups: Sequence[Group]) -> Figure | None:
    """Accuracy on each set that the stream does not teach, before the first task and after each."""
    curves = [[tables.retention(run) for run in group.runs] for group in groups]
    names = list(dict.fromkeys(name for runs in curves for run in runs for name in run))[:PANELS]
    if not names:
        return None
    across = min(len(names), 2)
    canvas, panels = drawing.canvas(height=2.6 * -(-len(names) // across), panels=(-(-len(names) // across), across))
    rows, longest = [], 0
    for panel, name in zip(panels, names):
        for g, (group, runs) in enumerate(zip(groups, curves)):
            middle, low, high = _band([run[name] for run in runs if name in run], WHOLE)
            drawing.draw_curve(panel, np.arange(len(middle)), middle, low, high, style=g)
            rows += [[name, group.label, t, v] for t, v in enumerate(middle) if v is not None]
            longest = max(longest, len(middle) - 1)
        panel.set_title(name, fontsize=9.5)
        panel.set_xlabel("tasks learned")
        drawing.whole_ticks(panel, longest)
        drawing.keep_within(panel, "y", WHOLE)
    panels[0].set_ylabel("accuracy (%)")
    drawing.legend(canvas, [group.label for group in groups])
    alt = "Accuracy on sets that the stream does not teach, before the first task and after each" + _of(groups)
    title = "What it knew before and was not taught"
    return drawing.finish(
        "retention", title, alt, canvas, ["set", "method", "tasks", "accuracy"], rows, _band_note(groups)
    )


def gap_curves(groups: Sequence[Group]) -> Figure | None:
    """Mean logit of the right and of the wrong classes, per task, where the method logs ``gap`` events."""
    series: list[tuple[str, int, int, list[Curve]]] = []
    for g, group in enumerate(groups):
        found = [gap_series(run) for run in group.runs]
        for s, name in enumerate(sorted({name for one in found for name in one})):
            label = f"{group.label}: {name}" if len(groups) > 1 else name
            series.append((label, g, s, [one[name] for one in found if name in one]))
    if not series:
        return None
    canvas, axes = drawing.canvas(height=3.2)
    rows = []
    for label, g, s, curves in series:
        middle, low, high = _band(curves)
        x = np.arange(1, len(middle) + 1)
        color = 2 * g + ("negative" in label)
        drawing.draw_curve(axes, x, middle, low, high, style=s, color=color, label=label)
        rows += [[label, t + 1, v] for t, v in enumerate(middle) if v is not None]
    drawing.whole_ticks(axes, max(len(c) for *_, curves in series for c in curves))
    axes.set_xlabel("task")
    axes.set_ylabel("mean logit")
    drawing.legend(canvas, axes=axes)
    alt = "Mean logits per task: " + ", ".join(label for label, *_ in series)
    return drawing.finish(
        "gap",
        "Modality gap: logits of right and wrong classes",
        alt,
        canvas,
        ["series", "task", "mean logit"],
        rows,
        _band_note(groups),
    )


def gap_series(run: Run) -> dict[str, Curve]:
    """``{"positive, before": [value a task], ...}`` from ``gap`` events with `positive...` and `negative...` numbers.

    The moment is the key's ending (``positive_before``) or the event's `when`, else not named.
    """
    series: dict[str, Curve] = {}
    for event in run.events:
        keys = [k for k in event if re.fullmatch(r"(positive|negative)(_\w+)?", k)]
        if event.get("event") != "gap" or not isinstance(event.get("task"), int) or event["task"] < 0:
            continue
        for key in keys:
            sign, _, ending = key.partition("_")
            moment = ending.removeprefix("mean_").removeprefix("mean") or event.get("when", "")
            curve = series.setdefault(f"{sign}, {moment}" if moment else sign, [])
            curve += [None] * (event["task"] + 1 - len(curve))
            curve[event["task"]] = float(event[key])
    return series


UNSEEN = 1e-3
"""Seconds that no figure shows: a method that does not learn takes microseconds for it."""


def seconds_per_task(groups: Sequence[Group]) -> Figure | None:
    """Learning and testing time of each task, from the ``task`` events; none of runs that tested once."""
    every = {part: [[task_seconds(run, part) for run in g.runs] for g in groups] for part in ("learn", "test")}
    parts = [part for part in every if any((s or 0) > UNSEEN for runs in every[part] for curve in runs for s in curve)]
    if not parts or all(len(curve) < 2 for runs in every["test"] for curve in runs):
        return None
    canvas, panels = drawing.canvas(height=2.6, panels=(1, len(parts)), share=False)
    rows, longest = [], 0
    for panel, part in zip(panels, parts):
        for g, group in enumerate(groups):
            middle, low, high = _band(every[part][g], (0.0, math.inf))
            drawing.draw_curve(panel, np.arange(1, len(middle) + 1), middle, low, high, style=g)
            rows += [[part, group.label, t + 1, v] for t, v in enumerate(middle) if v is not None]
            longest = max(longest, len(middle))
        panel.set_title(f"{part}ing", fontsize=9.5)
        panel.set_xlabel("task")
        panel.set_ylim(bottom=0)
        drawing.whole_ticks(panel, longest)
    panels[0].set_ylabel("seconds")
    drawing.legend(canvas, [group.label for group in groups])
    alt = "Seconds spent learning and testing, per task" + _of(groups)
    note = _band_note(groups, cut="0")
    return drawing.finish("seconds", "Time per task", alt, canvas, ["part", "method", "task", "seconds"], rows, note)


def task_seconds(run: Run, part: str) -> Curve:
    """Seconds of each task's `part` ("learn" or "test"); the last event of a task counts."""
    events = [e for e in run.events if e.get("event") == "task" and isinstance(e.get("task"), int)]
    curve: Curve = [None] * (1 + max((e["task"] for e in events), default=-1))
    for event in events:
        curve[event["task"]] = event.get(f"{part}_seconds")
    return curve


def _lines(
    key: str, title: str, groups: Sequence[Group], curves: list[list[Curve]], *, horizontal: str, vertical: str
) -> Figure:
    canvas, axes = drawing.canvas(height=3.2)
    rows, ends, longest = [], [], 0
    for g, (group, each) in enumerate(zip(groups, curves)):
        middle, low, high = _band(each, _ends(groups))
        drawing.draw_curve(axes, np.arange(1, len(middle) + 1), middle, low, high, style=g)
        rows += [[group.label, t + 1, m, a, b] for t, (m, a, b) in enumerate(zip(middle, low, high)) if m is not None]
        known = [m for m in middle if m is not None]
        ends += [f"{group.label} from {known[0]:.1f} to {known[-1]:.1f}"] if known else []
        longest = max(longest, len(middle))
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    drawing.keep_within(axes, "y", _ends(groups))
    drawing.whole_ticks(axes, longest)
    drawing.legend(canvas, [group.label for group in groups])
    return drawing.finish(
        key,
        title,
        f"{title}: {'; '.join(ends)}.",
        canvas,
        ["method", horizontal, "mean", "low", "high"],
        rows,
        _band_note(groups, cut=_cut(groups)),
    )


def _ends(groups: Sequence[Group]) -> tuple[float, float]:
    """Between which values the headline of these runs lies."""
    shares = all(
        run.headline in METRICS and METRICS[run.headline].unit == "%" and run.headline not in NO_SHARE
        for group in groups
        for run in group.runs
    )
    return WHOLE if shares else (-math.inf, math.inf)


def _cells(group: Group) -> list[continual.Measured]:
    runs = [run for run in group.runs if run.tasks]
    return [continual.from_rows(run.rows, tasks=len(run.tasks), metric=run.headline, or_first=True) for run in runs]


def _mean_matrix(group: Group) -> np.ndarray | None:
    """Mean over seeds; a cell that one seed lacks is not measured."""
    cells = [m.matrix for m in _cells(group)]
    return np.mean(cells, axis=0) if cells and not all(np.isnan(m).all() for m in cells) else None


def _band(curves: Sequence[Curve], ends: tuple[float, float] = (-math.inf, math.inf)) -> tuple[Curve, Curve, Curve]:
    """Mean, and the 95 % interval (from 3 seeds on) or the range, at each position that any curve has.

    Args:
        ends: the values can be no others; an interval is cut there.
    """
    points: list[tuple[float | None, float | None, float | None]] = []
    for t in range(max(map(len, curves), default=0)):
        values = [value for curve in curves if t < len(curve) and (value := curve[t]) is not None]
        if not values:
            points.append((None, None, None))
            continue
        one = summarize(values)
        low, high = (min(values), max(values)) if one.low is None or one.high is None else (one.low, one.high)
        points.append((one.mean, max(low, ends[0]), min(high, ends[1])))
    middle, low, high = (list(column) for column in zip(*points)) if points else ([], [], [])
    return middle, low, high


def _band_note(groups: Sequence[Group], what: str = "Bands", *, cut: str = "") -> str:
    """What the intervals of a figure are; empty where there is one seed.

    Args:
        cut: where the values end, ``0 and 100``; an interval ends there, too.
    """
    interval, spread = "95 % interval of the mean over seeds (Student's t)", "range over two seeds"
    named = {interval if len(g.runs) > 2 else spread for g in groups if len(g.runs) > 1}
    if interval in named and cut:
        interval += f", cut at {cut}"
    if len(named) == 2:
        return f"{what}: {interval}; {spread} where there are no more."
    return f"{what}: {interval if spread not in named else spread}." if named else ""


def _cut(groups: Sequence[Group]) -> str:
    return "0 and 100" if _ends(groups) == WHOLE else ""


def _plain(values: np.ndarray) -> Curve:
    return [None if np.isnan(v) else float(v) for v in values]


def _of(groups: Sequence[Group]) -> str:
    return f", for {', '.join(group.label for group in groups)}."


def _unit_label(groups: Sequence[Group]) -> str:
    metric = groups[0].runs[0].headline
    unit = METRICS[metric].unit if metric in METRICS else ""
    return metric.replace("_", " ") + (f" ({unit})" if unit else "")
