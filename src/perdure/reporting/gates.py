"""Figures of gated networks: which share of their channels is kept, by which classes, and what that saves.

Knows the ``modularity`` events of runs (see `families.rehearsal.modularity`). Does not know how lines look
(`drawing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perdure.reporting import drawing
from perdure.reporting.drawing import Curve, Figure
from perdure.reporting.load import Run
from perdure.reporting.tables import Group

MOST = 40
"""Most classes of a heat map."""
Event = Mapping[str, Any]


def gate_figures(groups: Sequence[Group]) -> list[Figure]:
    """Every figure for which these runs have ``modularity`` events."""
    drawn: list[Figure | None] = []
    for index, group in enumerate(groups):
        found = [events for run in group.runs if (events := by_task(run))]
        if not found:
            continue
        title = f": {group.label}" if len(groups) > 1 else ""
        last = found[0][max(found[0])]
        drawn += [keep_per_task(found, index, title), keep_per_class(last, index, title)]
        drawn += [overlap(last, index, title), work_and_usage(found, index, title)]
    return [figure for figure in drawn if figure is not None]


def by_task(run: Run) -> dict[int, Event]:
    """The last ``modularity`` event of each task."""
    events = [e for e in run.events if e.get("event") == "modularity" and isinstance(e.get("task"), int)]
    return {e["task"]: e for e in events if e["task"] >= 0}


def keep_per_task(runs: Sequence[Mapping[int, Event]], index: int, title: str) -> Figure:
    """Share of channels that each gate keeps after each task, mean over the images measured and over seeds."""
    gates = next(iter(runs[0].values()))["gates"]
    tasks = sorted(set().union(*runs))
    canvas, axes = drawing.canvas(height=3.2)
    rows = []
    for g, gate in enumerate(gates):
        curve = [100 * float(np.mean([run[t]["keep_ratio"][g] for run in runs if t in run])) for t in tasks]
        empty: Curve = [None] * len(tasks)
        places = np.array(tasks) + 1
        drawing.draw_curve(axes, places, list(curve), empty, empty, style=g, label=gate)
        rows += [[gate, t + 1, value] for t, value in zip(tasks, curve)]
    axes.set(xlabel="tasks learned", ylabel="channels kept (%)", ylim=(0, 100))
    drawing.whole_ticks(axes, tasks[-1] + 1)
    drawing.legend(canvas, axes=axes)
    ends = ", ".join(f"{gate} {row:.0f} %" for gate, row in zip(gates, [r[2] for r in rows if r[1] == tasks[-1] + 1]))
    return drawing.finish(
        f"keep-{index + 1}",
        "Channels that each gate keeps" + title,
        f"Lines of the share of channels kept after each task; at the end: {ends}.",
        canvas,
        ["gate", "tasks learned", "channels kept (%)"],
        rows,
        f"Mean over {len(runs)} seeds." if len(runs) > 1 else "",
    )


def keep_per_class(event: Event, index: int, title: str) -> Figure | None:
    """Heat map: share of channels that each gate keeps for the images of each class, after the last task."""
    table = 100 * np.array(event["keep_ratio_of_class"], dtype=float)
    names = [str(label) for label in event["classes"]]
    if not 1 < len(names) <= MOST:
        return None
    canvas, axes = drawing.canvas(height=min(7.0, 1.4 + 0.26 * len(names)))
    drawing.heat_map(axes, table, *_range(table))
    axes.set_xticks(np.arange(table.shape[1]) + 0.5, drawing.short(event["gates"], 22), rotation=20, ha="right")
    _class_ticks(axes.set_yticks, names)
    axes.set_ylabel("class")
    return drawing.finish(
        f"keep-class-{index + 1}",
        "Channels kept for each class (%)" + title,
        f"Heat map of {len(names)} classes by {table.shape[1]} gates, from {table.min():.0f} to {table.max():.0f} %.",
        canvas,
        ["class", *event["gates"]],
        [[name, *row] for name, row in zip(names, table.tolist())],
        _measured(event),
    )


def overlap(event: Event, index: int, title: str) -> Figure | None:
    """Heat map: Jaccard index of the channels that two classes use, and its correlation with their likeness."""
    table = 100 * np.array(event["overlap"], dtype=float)
    names = [str(label) for label in event["classes"]]
    if not 1 < len(names) <= MOST:
        return None
    canvas, axes = drawing.canvas(height=min(5.6, 1.6 + 0.34 * len(names)))
    drawing.heat_map(axes, table, *_range(table))
    _class_ticks(axes.set_xticks, names)
    _class_ticks(axes.set_yticks, names)
    axes.set(xlabel="class", ylabel="class")
    apart = table[~np.eye(len(names), dtype=bool)]
    r = event.get("overlap_with_similarity")
    found = "It cannot be correlated with the likeness of classes." if r is None else f"Correlation {r:.2f}."
    return drawing.finish(
        f"overlap-{index + 1}",
        "Channels that classes share (Jaccard index, %)" + title,
        f"Heat map of {len(names)} by {len(names)} classes; two classes share from {apart.min():.0f} to "
        f"{apart.max():.0f} % of the channels that either uses. {found}",
        canvas,
        ["class", *names],
        [[name, *row] for name, row in zip(names, table.tolist())],
        f"{_measured(event)} Channels that are on for more than half of a class's images. "
        + (
            "Correlation with the likeness of the classes' mean images: "
            + ("not defined." if r is None else f"{r:.2f}.")
        ),
    )


def work_and_usage(runs: Sequence[Mapping[int, Event]], index: int, title: str) -> Figure:
    """Multiply-accumulates an image beside the plain network's, and channels that no or every image uses."""
    tasks = sorted(set().union(*runs))
    places = np.array(tasks) + 1
    empty: Curve = [None] * len(tasks)
    canvas, panels = drawing.canvas(height=2.8, panels=(1, 2), share=False)
    series = {
        "with gates": (0, lambda e: e["multiply_accumulates"] / 1e6),
        "plain network": (0, lambda e: e["multiply_accumulates_plain"] / 1e6),
        "dead": (1, lambda e: len(e["dead"])),
        "always on": (1, lambda e: len(e["always_on"])),
    }
    rows = []
    for style, (name, (panel, value)) in enumerate(series.items()):
        curve = [float(np.mean([value(run[t]) for run in runs if t in run])) for t in tasks]
        drawing.draw_curve(panels[panel], places, list(curve), empty, empty, style=style, label=name)
        rows += [[name, t + 1, v] for t, v in zip(tasks, curve)]
    for panel, label in zip(panels, ("million multiply-accumulates", "channels")):
        panel.set(xlabel="tasks learned", ylabel=label)
        panel.set_ylim(bottom=0)
        drawing.whole_ticks(panel, tasks[-1] + 1, most=5)
        panel.legend(fontsize=8.5)
    at_end = {name: next(v for n, t, v in reversed(rows) if n == name) for name in series}
    alt = (
        f"After the last task an image takes {at_end['with gates']:.1f} million multiply-accumulates, "
        f"{at_end['plain network']:.1f} in the plain network; {at_end['dead']:.0f} channels are on for no image, "
        f"{at_end['always on']:.0f} for every image."
    )
    note = f"Mean over {len(runs)} seeds." if len(runs) > 1 else ""
    heading = "Work of an image, dead and always-on channels" + title
    return drawing.finish(f"work-{index + 1}", heading, alt, canvas, ["series", "tasks learned", "value"], rows, note)


def _class_ticks(put: Any, names: list[str]) -> None:
    nth = -(-len(names) // 20)
    places = np.arange(0, len(names), nth)
    put(places + 0.5, names[::nth])


def _range(table: np.ndarray) -> tuple[float, float]:
    low = 10 * np.floor(table.min() / 10)
    return low, max(10 * np.ceil(table.max() / 10), low + 10)


def _measured(event: Event) -> str:
    return f"After the last task, over {event['images']} images."
