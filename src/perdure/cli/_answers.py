"""How the answers of `perdure predict` are printed: lines, JSON, comma-separated values; masks as pictures.

Knows answers by kind (`perdure.prediction.answers`). Does not know runs.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

Form = Literal["json", "csv", "text"]


def show(rows: Sequence[dict[str, Any]], *, form: Form, headed: bool = True) -> None:
    """Print answers. `headed`: comma-separated values begin with the names of the columns."""
    if form == "csv":
        _table(rows, headed)
        return
    for row in rows:
        print(json.dumps(row, ensure_ascii=False) if form == "json" else f"{row['file']}  {said(row)}")


def said(row: Mapping[str, Any]) -> str:
    """One answer in a line."""
    if "caption" in row:
        return row["caption"]
    if "question" in row:
        return row["answer"]
    if "found" in row:
        return ", ".join(f"{one['file']} ({one['score']:.4f})" for one in row["found"])
    if "events" in row:
        return _events(row["events"])
    if "audio" in row:
        return f"heard: {_events(row['audio']) or '-'}; seen: {_events(row['visual']) or '-'}"
    if "shares" in row:
        return "masked: " + ", ".join(f"{100 * share:.1f} %" for share in row["shares"])
    ranked = ", ".join(f"{a['class']} ({figure(a)})" for a in row["answers"])
    return f"{'unknown: ' if row.get('unknown') else ''}{ranked}"


def figure(answer: Mapping[str, Any]) -> str:
    """`0.9431`, a probability; or `score 4.0512`."""
    return f"{answer['probability']:.4f}" if "probability" in answer else f"score {answer['score']:.4f}"


def _events(events: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['class']} {one['from']}-{one['to']} s" for one in events)


def _table(rows: Sequence[dict[str, Any]], headed: bool) -> None:
    writer = csv.writer(sys.stdout)
    flagged = [name for name in ("calibrated", "unknown") if any(name in row for row in rows)]
    if headed:
        columns = _cells(rows[0])[0] if rows else ["file", "rank", "class", "probability"]
        writer.writerow([*columns, *flagged])
    for row in rows:
        more = [str(row[name]).lower() for name in flagged if name in row]
        writer.writerows([row["file"], *line, *more] for line in _cells(row)[1])


def _cells(row: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Names of the columns of such an answer, and its lines."""
    if "caption" in row:
        return ["file", "caption"], [[row["caption"]]]
    if "question" in row:
        return ["file", "question", "answer"], [[row["question"], row["answer"]]]
    if "found" in row:
        found = [[k, one["file"], f"{one['score']:.4f}"] for k, one in enumerate(row["found"], 1)]
        return ["file", "rank", "found", "score"], found
    if "events" in row or "audio" in row:
        tracks = {"": row["events"]} if "events" in row else {m: row[m] for m in ("audio", "visual")}
        lines = [[track, e["class"], e["from"], e["to"]] for track, events in tracks.items() for e in events]
        return ["file", "track", "class", "from", "to"], lines
    if "shares" in row:
        return ["file", "frame", "share"], [[k, f"{share:.4f}"] for k, share in enumerate(row["shares"])]
    kind = next((key for a in row["answers"] for key in a if key != "class"), "probability")
    ranked = [[k, a["class"], f"{a[kind]:.4f}"] for k, a in enumerate(row["answers"], 1)]
    return ["file", "rank", "class", kind], ranked


def write_masks(rows: Sequence[Mapping[str, Any]], folder: Path) -> int:
    """Masks as PNG, black and white: ``FOLDER/<clip>/00000001.png``. Their number."""
    import numpy as np
    from PIL import Image

    count = 0
    for row in rows:
        for i, runs in enumerate(row.get("masks", ()), 1):
            file = folder / str(row["file"]) / f"{i:08d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            mask = np.repeat(np.arange(len(runs)) % 2 * 255, runs).reshape(row["size"])  # runs begin with one of zeros
            Image.fromarray(mask.astype(np.uint8)).save(file)
            count += 1
    return count
