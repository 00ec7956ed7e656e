"""How the report's figures look: canvas, colors, curves with bands, heat maps, and the way to SVG.

Knows matplotlib. Does not know runs or methods. The same drawing gives the same bytes.

Colors are Okabe-Ito's without yellow and black, and never alone: markers and dashes repeat them.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
INK = "#24292f"
"""Of text and axes; the page replaces it by its own text color, so that figures fit light and dark."""
FONT: dict[Any, Any] = {"svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"]}
"""Text stays text; the page gives it its own font."""
Curve = list[float | None]
"""One value a task; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing and all that stands beside it."""

    key: str
    """Unique on the page; begins the SVG's ids and names the saved files."""
    title: str
    alt: str
    svg: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    note: str = ""


def draw_curve(
    axes: Axes,
    x: np.ndarray,
    middle: Curve,
    low: Curve,
    high: Curve,
    *,
    style: int,
    color: int | None = None,
    label: str = "",
) -> None:
    tint = COLORS[(style if color is None else color) % len(COLORS)]
    dash, marker = DASHES[style % len(DASHES)], MARKERS[style % len(MARKERS)]
    axes.plot(x, as_array(middle), dash, marker=marker, markersize=4.5, color=tint, label=escape(label))
    axes.fill_between(x, as_array(low), as_array(high), color=tint, alpha=0.18, linewidth=0)


def heat_map(axes: Axes, matrix: np.ndarray, low: float, high: float) -> None:
    """Cells in cividis, each with its number in black or white, whichever stands out more."""
    from matplotlib import colormaps
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    colors, (down, across) = colormaps["cividis"], matrix.shape
    size = max(down, across)
    cells = [(t, j) for t in range(down) for j in range(across) if not np.isnan(matrix[t, j])]
    squares = PatchCollection([Rectangle((j, t), 1, 1) for t, j in cells], cmap=colors, edgecolor="face", linewidth=0.3)
    squares.set_array([matrix[cell] for cell in cells])
    squares.set_clim(low, high)
    axes.add_collection(squares)
    axes.set(xlim=(0, across), ylim=(0, down))
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    with style():
        bar = axes.figure.colorbar(squares, ax=axes, fraction=0.045, pad=0.02)
    bar.outline.set_visible(False)
    if size > 30:
        return
    for t, j in cells:
        red, green, blue, _ = colors((matrix[t, j] - low) / (high - low))
        ink = "white" if luminance((red, green, blue)) < 0.179 else "black"
        text, points = (f"{matrix[t, j]:.1f}", 8.5) if size <= 12 else (f"{matrix[t, j]:.0f}", 6.5)
        axes.text(j + 0.5, t + 0.5, text, ha="center", va="center", color=ink, fontsize=points)


def luminance(rgb: Sequence[float]) -> float:
    """Relative luminance (WCAG 2) of red, green, blue in 0..1; at 0.179 black and white contrast alike."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def canvas(
    *,
    height: float,
    panels: tuple[int, int] | None = None,
    share: bool = True,
    ratios: Sequence[float] | None = None,
) -> tuple[Canvas, Any]:
    """A figure 5.6 inches wide with one axes, or a flat array of panels that share their scales or do not.

    Args:
        ratios: of the heights of the rows of panels; none: alike.
    """
    from matplotlib.figure import Figure as Canvas

    with style():
        canvas = Canvas(figsize=(5.6, height), layout="constrained")
        if panels is None:
            return canvas, canvas.subplots()
        drawn = canvas.subplots(*panels, sharex=share, sharey=share, squeeze=False, height_ratios=ratios)
        return canvas, drawn.ravel()


def style() -> Any:
    from matplotlib import rc_context

    return rc_context(
        {
            **FONT,
            "font.size": 10,
            "text.color": INK,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": False,
            "legend.frameon": False,
        }
    )


def draw_dots(axes: Axes, at: np.ndarray, middle: Curve, low: Curve, high: Curve, *, style: int) -> None:
    """Horizontal ranges with a marker at the mean, at the heights `at`."""
    tint, marker = COLORS[style % len(COLORS)], MARKERS[style % len(MARKERS)]
    axes.hlines(at, as_array(low), as_array(high), color=tint, alpha=0.5, linewidth=2.5)
    axes.plot(as_array(middle), at, linestyle="none", marker=marker, markersize=5, color=tint)


LEGEND_ROWS, LEGEND_ROW = 4, 0.22
"""Rows of a legend for which a canvas has room; inches of each further one, which the canvas grows by."""


def legend(canvas: Canvas, labels: Sequence[str] = (), *, axes: Axes | None = None) -> None:
    """Below the drawing: the labelled lines of `axes`, or one entry a label in the order of styles (none for one)."""
    from matplotlib.lines import Line2D

    if axes is not None:
        handles = axes.get_legend_handles_labels()[0]
    elif len(labels) > 1:
        looks: list[dict[str, Any]] = [
            {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i % len(DASHES)]} for i in range(len(labels))
        ]
        names = short(labels, 60)
        handles = [
            Line2D([], [], marker=MARKERS[i % len(MARKERS)], markersize=4.5, label=name, **look)
            for i, (name, look) in enumerate(zip(names, looks))
        ]
    else:
        return
    widest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), 70 // (widest + 8)))
    more = math.ceil(len(handles) / columns) - LEGEND_ROWS
    canvas.set_figheight(canvas.get_figheight() + max(more, 0) * LEGEND_ROW)
    with style():
        canvas.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=9.5)


def bars(
    axes: Axes,
    runs: Sequence[tuple[int, int]],
    top: float,
    height: float,
    *,
    color: str,
    hatched: bool = False,
) -> None:
    """A bar from and to each pair; hatched ones are pale with an edge, so that color is not all that tells them."""
    from matplotlib.patches import Rectangle

    look: dict[str, Any] = {"facecolor": color, "linewidth": 0}
    if hatched:
        look = {"facecolor": color + "40", "edgecolor": color, "hatch": "////", "linewidth": 0.8}
    for begin, end in runs:
        axes.add_patch(Rectangle((begin, top), end - begin, height, **look))


def patch_legend(canvas: Canvas, labels: Mapping[str, bool]) -> None:
    """Below the drawing: a filled patch for each label, or a hatched one."""
    from matplotlib.patches import Patch

    plain: dict[str, Any] = {"facecolor": INK}
    hatched: dict[str, Any] = {"facecolor": "none", "edgecolor": INK, "hatch": "////"}
    handles = [Patch(label=name, **(hatched if is_hatched else plain)) for name, is_hatched in labels.items()]
    with style():
        canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9.5)


def picture(axes: Axes, pixels: np.ndarray, *, left: float, top: float, width: float, height: float) -> None:
    """Pixels ``[height width 3]`` at a place in the axes' own units."""
    axes.imshow(pixels, extent=(left, left + width, top + height, top), aspect="auto", interpolation="none", zorder=0.5)


def finish(
    key: str,
    title: str,
    alt: str,
    canvas: Canvas,
    columns: list[str],
    rows: list[list[Any]],
    note: str = "",
    *,
    photographs: bool = False,
) -> Figure:
    """The drawing as SVG, beside its title, its text for those who cannot see it and its data.

    Args:
        photographs: its pictures are photographs, to be kept as JPEG.
    """
    from matplotlib import rc_context

    out = io.StringIO()
    unnamed = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({**FONT, "svg.hashsalt": f"perdure {key}", "image.composite_image": not photographs}):
        canvas.savefig(out, format="svg", transparent=True, metadata=unnamed)
    svg = _compact(_as_jpeg(out.getvalue()) if photographs else out.getvalue())
    return Figure(key=key, title=title, alt=alt, svg=svg, columns=columns, rows=rows, note=note)


def as_array(curve: Curve) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in curve], dtype=np.float64)


def whole_ticks(axes: Axes, last: int, *, most: int = 10) -> None:
    """Ticks at 1 .. last, no more than `most`."""
    axes.set_xticks(range(1, last + 1, max(1, math.ceil(last / most))))


def keep_within(axes: Axes, side: Literal["x", "y"], ends: tuple[float, float]) -> None:
    """The axis ends where the values do, or before; markers at its ends are drawn whole."""
    begin, end = axes.get_xlim() if side == "x" else axes.get_ylim()
    kept = max(begin, ends[0]), min(end, ends[1])
    (axes.set_xlim if side == "x" else axes.set_ylim)(*kept)
    for line in axes.get_lines():
        line.set_clip_on(False)


def short(names: Sequence[str], longest: int = 14) -> list[str]:
    return [escape(name if len(name) <= longest else name[: longest - 1] + "…") for name in names]


def escape(text: str) -> str:
    """matplotlib reads a pair of dollars as mathematics."""
    return text.replace("$", r"\$")


def _as_jpeg(svg: str) -> str:
    """Pictures in the drawing as JPEG, a fifth of the bytes."""
    from PIL import Image

    def smaller(found: re.Match[str]) -> str:
        out = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB").save(out, "JPEG", quality=80)
        return f'"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"'

    return re.sub(r'"data:image/png;base64,([^"]+)"', smaller, svg)


def _compact(svg: str) -> str:
    """The same drawing in half the bytes: a hundredth of a point is enough, and a turn by 0 is none."""
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*\)"', "", svg)
    return re.sub(r"\n\s*", "\n", svg)
