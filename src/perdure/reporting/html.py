"""The report as one HTML page that needs nothing else: no network, no script, no second file.

Knows what stands on the page; `templates/report.html.j2` knows how it looks. Does not compute or draw.
The same runs give the same bytes. If the page grows past its limit, the largest drawings go and their tables stay.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perdure.reporting import clips, drawing, figures
from perdure.reporting.by_set import Texts
from perdure.reporting.drawing import Figure
from perdure.reporting.history import COLUMNS, history
from perdure.reporting.load import Run, flatten
from perdure.reporting.markdown import CAPTION, cell, interval
from perdure.reporting.plain import csv_text
from perdure.reporting.published import published
from perdure.reporting.tables import (
    OF_SETS,
    Group,
    all_comparisons,
    all_numbers,
    differing,
    shown,
    summarize,
    warnings,
    winners,
)

LIMIT = 1_000_000
"""Most bytes of a page."""
FOLDED = 20_000
"""Most characters of a manifest on the page; the whole is in card.json."""


def html(
    groups: Sequence[Group],
    *,
    seen: str = "",
    sets: Sequence[Texts] = (),
    drawn: Sequence[Figure] | None = None,
    limit: int = LIMIT,
) -> str:
    """The page.

    Args:
        seen: sentences for its head.
        sets: tables of methods and test sets.
        drawn: the figures, if they are made already.
        limit: bytes from which the largest figures are left out.
    """
    remarks: list[str] = []
    if drawn is None:
        of_clips, remarks = clips.clip_figures(groups)
        drawn = [*figures.all_figures(groups), *of_clips]
    drawn = list(drawn)
    page = _render(groups, drawn, remarks, {"seen": seen, "sets": sets})
    while len(page.encode()) > limit and any(figure.svg for figure in drawn):
        largest = max(range(len(drawn)), key=lambda i: len(drawn[i].svg))
        note = f"{drawn[largest].note} Not drawn, to keep this page below {limit / 1e6:g} MB: see the table.".strip()
        drawn[largest] = replace(drawn[largest], svg="", note=note)
        page = _render(groups, drawn, remarks, {"seen": seen, "sets": sets})
    return page


def _render(groups: Sequence[Group], drawn: Sequence[Figure], remarks: Sequence[str], more: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("perdure.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": cell, "interval": interval, "value": shown, "rounded": _rounded}
    environment.tests["contains"] = lambda container, item: item in container
    template = environment.get_template("report.html.j2")
    runs = [run for group in groups for run in group.runs]
    return template.render(
        title=_title(groups),
        streams=", ".join(dict.fromkeys(_worlds(run) for run in runs if run.stream)),
        groups=groups,
        runs=runs,
        warnings=warnings(groups),
        headline=_headline(groups),
        numbers=all_numbers(groups),
        winners=winners(groups, all_numbers(groups)),
        caption=CAPTION.replace("Bold:", "Bold and ★:"),
        comparisons=all_comparisons(groups),
        published=[(group, published(group)) for group in groups if published(group)],
        figures=[_figure(figure) for figure in drawn],
        remarks=remarks,
        histories=[(run.name, rows) for run in runs if (rows := history(run.folder))],
        history_columns=COLUMNS,
        costs=_costs(groups),
        differing=differing([group.runs[0] for group in groups]),
        settings=[(group, _settings(group.runs[0])) for group in groups],
        environments=_environments(groups),
        manifests=[(group, _manifest(group.runs[0])) for group in groups if group.runs[0].card.get("stream")],
        command="perdure report " + " ".join(shlex.quote(str(run.folder)) for run in runs),
        rerun="perdure run " + shlex.quote(str(Path(runs[0].folder) / "recipe.yaml")),
        **more,
    )


def _title(groups: Sequence[Group]) -> str:
    methods = list(dict.fromkeys(group.runs[0].method or group.label for group in groups))
    return " and ".join(methods) if len(methods) < 3 else f"{len(methods)} methods"


def _worlds(run: Run) -> str:
    """``cifar100 (class_incremental)``."""
    return f"{run.data} ({run.stream})" if run.data else run.stream


def _headline(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The two or three numbers that a reader wants first; for a single method only."""
    if len(groups) > 1:
        return []
    chosen = [n for n in groups[0].summaries if n.metric == groups[0].runs[0].headline]
    order = {"average": 0, "last": 1, "MFN": 0, "MAA": 1, "BWT": 2, "forgetting": 3, "when_learned": 4, "over_sets": 4}
    order |= dict.fromkeys(OF_SETS, -1)
    chosen = sorted((n for n in chosen if n.aggregate in order), key=lambda n: order[n.aggregate])[:3]
    return [{"number": number, "summary": groups[0].summaries[number]} for number in chosen]


# -- figures ----------------------------------------------------------------------------------------------


def _figure(figure: Figure) -> dict[str, Any]:
    from markupsafe import Markup

    saved = base64.b64encode(figure.svg.encode()).decode()
    table = base64.b64encode(csv_text(figure.columns, figure.rows).encode()).decode()
    return {
        "key": figure.key,
        "title": figure.title,
        "alt": figure.alt,
        "note": figure.note,
        "columns": figure.columns,
        "rows": figure.rows,
        "svg": Markup(inline_svg(figure)),
        "svg_link": f"data:image/svg+xml;base64,{saved}" if figure.svg else "",
        "csv_link": f"data:text/csv;charset=utf-8;base64,{table}",
    }


def inline_svg(figure: Figure) -> str:
    """The SVG as part of a page: no XML head, ids that are its own, text in the page's color, named for readers."""
    if not figure.svg:
        return ""
    from markupsafe import escape

    svg = figure.svg[figure.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[\w.]+_\d+">', "<g>", svg)
    svg = re.sub(r'\bid="', f'id="{figure.key}-', svg)
    svg = re.sub(r'href="#', f'href="#{figure.key}-', svg).replace("url(#", f"url(#{figure.key}-")
    svg = svg.replace(drawing.INK, "currentColor")
    svg = re.sub(r" ?font-family: [^;\"]*;?", "", svg)  # the page's own
    head = re.search(r'viewBox="[^"]*"', svg)
    assert head is not None
    named = f'<svg role="img" aria-label="{escape(figure.alt)}" {head[0]}>'
    return named + svg[svg.index(">") + 1 :]


# -- tables -----------------------------------------------------------------------------------------------


def _costs(groups: Sequence[Group]) -> list[list[str]]:
    """A row a group: label, hours, learning, testing, memory, parameters, bytes; the mean over seeds."""
    rows = []
    for group in groups:
        cards = [run.card for run in group.runs]
        parts = [
            [sum(s or 0 for s in figures.task_seconds(run, part)) for run in group.runs] for part in ("learn", "test")
        ]
        row = [
            _duration(_mean(card.get("wall_seconds") for card in cards)),
            *(_duration(_mean(part) or None) for part in parts),
            *(_bytes(_mean(_peak(card).get(kind) for card in cards)) for kind in ("resident", "gpu")),
            _count(_mean(card.get("extra_parameters") for card in cards)),
            _bytes(_mean(card.get("stored_bytes") for card in cards)),
        ]
        if any(text != "–" for text in row):
            rows.append([group.label, *row])
    return rows


def _settings(run: Run) -> list[tuple[str, Any, str]]:
    """Dotted setting, value, where the value came from."""
    origins: Mapping[str, str] = run.card.get("origins") or {}
    return [(name, value, str(origins.get(name, ""))) for name, value in sorted(flatten(run.recipe).items())]


def _environments(groups: Sequence[Group]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """Run's name, and what its card says of machine, versions, weights and data."""
    parts = ("device", "precision", "seeds", "versions", "git", "weights", "data", "recipe_sha256")
    every = []
    for group in groups:
        for run in group.runs:
            facts = flatten({part: run.card[part] for part in parts if run.card.get(part)})
            every.append((run.name, list(facts.items())))
    return [item for item in every if item[1]]


def _manifest(run: Run) -> str:
    text = json.dumps(run.card["stream"], indent=1, ensure_ascii=False, default=str)
    # Long lists of numbers take a line each in JSON; put them on one.
    text = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", text)
    return text if len(text) <= FOLDED else text[:FOLDED] + "\n… the rest is in card.json"


def _peak(card: Mapping[str, Any]) -> Mapping[str, Any]:
    return card.get("peak_memory") or {}


def _mean(values: Any) -> float | None:
    known = [v for v in values if v is not None]
    return summarize(known).mean if known else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _bytes(size: float | None) -> str:
    if size is None:
        return "–"
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _rounded(value: Any) -> str:
    """A cell of a figure's data table; the saved file has all digits."""
    if not isinstance(value, float):
        return shown(value)
    return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}".rstrip("0").rstrip(".")
