"""Figures of single test clips: what happens when, where the sound comes from, what was asked and answered.

Knows the records of audio-visual tasks (see `perdure.metrics.audio_visual`); truth stands above or beside prediction.
Pictures are read where the records say that they are; a task whose pictures are gone gets a line, no figure. Does not
know models or readers.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perdure.errors import UnreadableExample
from perdure.images import open_image
from perdure.metrics.parsing import events_of, presence_map, segment_scores
from perdure.reporting import drawing
from perdure.reporting.drawing import Figure
from perdure.reporting.load import Run
from perdure.reporting.tables import Group
from perdure.run_folder.run_files import Part, read_lines

CLIPS = 3
"""Clips a task: the best, the middle and the worst."""
BACKGROUND = "background"
Record = Mapping[str, Any]
Runs = list[tuple[int, int]]
Lane = tuple[str, int, Runs, Runs]
"""What, its class, and when it is true and when it is predicted."""


def clip_figures(groups: Sequence[Group]) -> tuple[list[Figure], list[str]]:
    """A figure for each audio-visual task of a single run (or of the first seed), and what could not be drawn."""
    figures: list[Figure] = []
    remarks: list[str] = []
    if len(groups) != 1:
        return figures, remarks
    run = groups[0].runs[0]
    for index, task in enumerate(run.tasks):
        found = last_records(run, index)
        if not found:
            continue
        score, draw = KINDS[found[0]["kind"]]
        chosen = spread(found, score)
        try:
            pictures = [_pictures(record) for record in chosen]
        except UnreadableExample as fault:
            remarks.append(f"Clips of {task} are not drawn: {fault}")
            continue
        note = f"{_which(len(chosen), len(found))} by this task's own score."
        figures.append(draw(f"clips-{index + 1}", task, chosen, pictures, note))
    return figures, remarks


def last_records(run: Run, asked: int) -> list[Record]:
    """Records of a task's last test, if they are audio-visual ones."""
    files = {path.stem.split("_")[0]: path for path in (run.folder / "predictions").glob(f"*_{asked}.jsonl")}
    tests = sorted((int(after), path) for after, path in files.items() if after.lstrip("-").isdigit())
    if not tests or _kind(tests[-1][1]) not in KINDS:
        return []
    return list(read_lines(tests[-1][1], Part)[0])


def spread(records: Sequence[Record], score: Callable[[Record], float]) -> list[Record]:
    """The record of the highest score, of the middle one, and of the lowest; of equal ones, the first by id."""
    ranked = sorted(records, key=lambda record: (-score(record), record["id"]))
    places = np.linspace(0, len(ranked) - 1, min(CLIPS, len(ranked))).round().astype(int)
    return [ranked[place] for place in places]


def _which(shown: int, total: int) -> str:
    names = {1: "The only clip", 2: "Both clips"}
    return names.get(total, f"The best, the middle and the worst of {total} test clips") if shown else ""


def _kind(path: Path) -> str:
    """Kind of the first record."""
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    try:
        return str(json.loads(first).get("kind"))
    except (ValueError, AttributeError):
        return ""


def _pictures(record: Record) -> list[np.ndarray]:
    """Small squares of a clip's frames, as the model sees them.

    Raises:
        UnreadableExample: one of them is not where the record says, or the record names none and needs some.
    """
    side = THUMBS[record["kind"]]
    if not record.get("frames") and record["kind"] == "segment":
        raise UnreadableExample("the records do not say where its frames are", where=record["id"])
    images = (open_image(path, where=record["id"]) for path in record.get("frames", ()))
    return [np.asarray(image.resize((side, side))) for image in images]


# -- events in time -----------------------------------------------------------------------------------------


def timelines(
    key: str, task: str, records: Sequence[Record], pictures: Sequence[list[np.ndarray]], note: str
) -> Figure:
    """A film strip a clip, and below it a lane for each class and modality: truth filled, prediction hatched."""
    every = [lanes_of(record) for record in records]
    strips = [bool(frames) for frames in pictures]
    heights = [0.55 + 0.62 * strip + 0.24 * max(len(lanes), 1) for lanes, strip in zip(every, strips)]
    canvas, panels = drawing.canvas(height=0.5 + sum(heights), panels=(len(records), 1), share=False, ratios=heights)
    rows: list[list[Any]] = []
    for panel, record, lanes, frames in zip(panels, records, every, pictures):
        _timeline(panel, record, lanes, frames, score=KINDS[record["kind"]][0](record))
        rows += [[record["id"], what, _said(true), _said(found)] for what, _, true, found in lanes]
    panels[-1].set_xlabel("second")
    drawing.patch_legend(canvas, {"truth": False, "prediction": True})
    alt = f"Timelines of {len(records)} clips of {task}: when each event is true and when it is predicted."
    columns = ["clip", "event", "true", "predicted"]
    return drawing.finish(key, f"Test clips of {task}", alt, canvas, columns, rows, note, photographs=True)


def lanes_of(record: Record) -> list[Lane]:
    """One lane for each modality and class that is true or predicted; localized events have one modality."""
    names = record.get("names", {})
    if record["kind"] == "localize-events":
        true, found = (_by_class(record[part]) for part in ("target", "prediction"))
        labels = [label for label in sorted(true | found) if names.get(str(label)) != BACKGROUND]
        return [(names.get(str(c), str(c)), c, true.get(c, []), found.get(c, [])) for c in labels]
    lanes: list[Lane] = []
    for word, true, found in _modalities(record):
        for c in sorted({run[0] for run in [*true, *found]}):
            own, answered = ([(begin, end) for label, begin, end in runs if label == c] for runs in (true, found))
            lanes.append((f"{names.get(str(c), c)}, {word}", c, own, answered))
    return lanes


def _modalities(record: Record) -> list[tuple[str, list, list]]:
    """("heard" | "seen" | "both", true runs, predicted runs)."""
    size = {"classes": record["classes"], "segments": record["segments"]}
    maps = {
        part: {m: presence_map(record[part][m], **size) for m in ("audio", "visual")} for part in ("true", "predicted")
    }
    for both in maps.values():
        both["both"] = both["audio"] & both["visual"]
    words = {"audio": "heard", "visual": "seen", "both": "both"}
    return [(word, events_of(maps["true"][m]), events_of(maps["predicted"][m])) for m, word in words.items()]


def _by_class(labels: Sequence[int]) -> dict[int, Runs]:
    """Class -> runs of its segments."""
    runs: dict[int, Runs] = {}
    for second, label in enumerate(labels):
        own = runs.setdefault(label, [])
        if own and own[-1][1] == second:
            own[-1] = (own[-1][0], second + 1)
        else:
            own.append((second, second + 1))
    return runs


def _timeline(panel: Any, record: Record, lanes: Sequence[Lane], frames: list[np.ndarray], *, score: float) -> None:
    seconds = record.get("segments") or len(record["target"])
    classes = sorted({label for _, label, _, _ in lanes})
    for place, (_, label, true, found) in enumerate(lanes):
        color = drawing.COLORS[classes.index(label) % len(drawing.COLORS)]
        drawing.bars(panel, true, place + 0.08, 0.4, color=color)
        drawing.bars(panel, found, place + 0.52, 0.4, color=color, hatched=True)
    top = -2.6 if frames else -0.1
    for second, frame in enumerate(frames):
        drawing.picture(panel, frame, left=second, top=top + 0.1, width=1, height=2.4)
    panel.set(xlim=(0, seconds), ylim=(max(len(lanes), 1), top))
    panel.set_yticks([i + 0.5 for i in range(len(lanes))], drawing.short([lane[0] for lane in lanes], 26))
    panel.set_xticks(range(0, seconds + 1, 1 if seconds <= 10 else 5))
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    for line in range(1, len(lanes)):
        panel.axhline(line, color=drawing.INK, linewidth=0.3, alpha=0.4)
    if not lanes:
        panel.text(
            seconds / 2, 0.5, "nothing true, nothing predicted", ha="center", va="center", fontsize=9, color=drawing.INK
        )
    panel.set_title(f"{drawing.short([record['id']], 40)[0]}: {100 * score:.0f} %", fontsize=9.5, loc="left")


def _said(runs: Runs) -> str:
    return ", ".join(f"{begin} to {end} s" for begin, end in runs) or "never"


# -- masks --------------------------------------------------------------------------------------------------


def overlays(key: str, task: str, records: Sequence[Record], pictures: Sequence[list[np.ndarray]], note: str) -> Figure:
    """A row a clip: its middle frame, the true mask on it, the predicted one."""
    height = 0.3 + 1.75 * len(records)
    canvas, panels = drawing.canvas(height=height, panels=(len(records), 3), share=False)
    rows: list[list[Any]] = []
    for row, (record, frames) in enumerate(zip(records, pictures)):
        middle = len(record["iou"]) // 2
        frame, own = frames[middle], panels[3 * row : 3 * row + 3]
        masks = [None, *(mask_of(record[part][middle], record["size"], frame) for part in ("target", "prediction"))]
        titles = ["frame", "truth", f"prediction, IoU {100 * record['iou'][middle]:.0f} %"]
        for panel, mask, title, color in zip(own, masks, titles, (0, 2, 1)):
            panel.imshow(painted(frame, mask, drawing.COLORS[color]), interpolation="none")
            panel.set_title(title, fontsize=9)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(False)
        own[0].set_ylabel(drawing.short([record["id"]], 24)[0], fontsize=8.5)
        rows += [[record["id"], second + 1, value] for second, value in enumerate(100 * np.array(record["iou"]))]
    alt = f"Frames of {len(records)} clips of {task}, with the true and the predicted mask of what sounds."
    return drawing.finish(
        key, f"Test clips of {task}", alt, canvas, ["clip", "second", "IoU (%)"], rows, note, photographs=True
    )


def mask_of(lengths: Sequence[int], size: Sequence[int], frame: np.ndarray) -> np.ndarray:
    """A mask out of its run lengths (zeros first), at the size of a frame's picture."""
    values = np.arange(len(lengths)) % 2 == 1
    mask = np.repeat(values, lengths).reshape(*size)
    rows, columns = (np.arange(n) * m // n for n, m in zip(frame.shape[:2], size))
    return mask[np.ix_(rows, columns)]


def painted(frame: np.ndarray, mask: np.ndarray | None, color: str) -> np.ndarray:
    """The frame in grey, with what is in the mask in a color."""
    if mask is None:
        return frame
    tint = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    grey = np.repeat(frame.mean(2, keepdims=True), 3, axis=2)
    return np.where(mask[..., None], 0.35 * grey + 0.65 * tint, 0.7 * grey + 40).astype(np.uint8)


# -- questions ----------------------------------------------------------------------------------------------


def questions(
    key: str, task: str, records: Sequence[Record], pictures: Sequence[list[np.ndarray]], note: str
) -> Figure:
    """A frame a clip, the question beside it, what was answered, and the truth."""
    canvas, panels = drawing.canvas(height=0.2 + 1.2 * len(records), panels=(len(records), 1), share=False)
    rows: list[list[Any]] = []
    for panel, record, frames in zip(panels, records, pictures):
        panel.set(xlim=(0, 5), ylim=(1, 0), xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
        if frames:
            drawing.picture(panel, frames[len(frames) // 2], left=0, top=0, width=1.05, height=1)
        asked = textwrap.fill(record.get("question", record["id"]), 44)
        right = record["prediction"] == record["target"]
        answer = f"“{record['prediction']}”" + (", right" if right else f"; the truth is “{record['target']}”")
        color = drawing.COLORS[2 if right else 1]
        left = 1.25 if frames else 0
        panel.text(left, 0.3, drawing.escape(asked), va="center", fontsize=10.5, color=drawing.INK)
        panel.text(left, 0.78, drawing.escape(answer), va="center", fontsize=10.5, color=color, weight="bold")
        rows.append([record["id"], record.get("question", ""), record["prediction"], record["target"]])
    alt = f"{len(records)} questions of {task} with a frame, the answer given and the true one."
    columns = ["clip", "question", "answered", "true"]
    return drawing.finish(key, f"Test clips of {task}", alt, canvas, columns, rows, note, photographs=True)


def _right_seconds(record: Record) -> float:
    return float(np.mean([p == t for p, t in zip(record["prediction"], record["target"])]))


def _parsed_well(record: Record) -> float:
    """Mean of the segment F1 of sound, sight and both."""
    size = {"classes": record["classes"], "segments": record["segments"]}
    maps = [{m: presence_map(record[part][m], **size) for m in ("audio", "visual")} for part in ("predicted", "true")]
    scores = segment_scores(*maps)
    return float(np.mean([scores[name] for name in ("A", "V", "AV")]))


KINDS: dict[str, tuple[Callable[[Record], float], Callable[..., Figure]]] = {
    "localize-events": (_right_seconds, timelines),
    "parse-video": (_parsed_well, timelines),
    "segment": (lambda record: float(np.mean(record["iou"])), overlays),
    "answer": (lambda record: float(record["prediction"] == record["target"]), questions),
}
"""Kind -> the score of a record in 0..1, and how it is drawn."""
THUMBS = {"localize-events": 48, "parse-video": 48, "segment": 128, "answer": 112}
"""Side of a picture in pixels."""
