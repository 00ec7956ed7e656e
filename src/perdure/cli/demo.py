"""`perdure demo`: classes arrive task after task, then pictures come in another look; on a world made in memory.

Knows which recipes are shown, the live table and the words at the end. All numbers come from the runs' scores.
"""

from __future__ import annotations

import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.cli._layout import libraries_aside, width

EXAMPLES = """
perdure demo
perdure demo --out /tmp/demo --seed 1
"""
METHODS = ("continual_clip", "finetune", "rail", "ranpac")
PICTURES = 2
"""Test pictures of a class in another look: one of those of which the reward model knows more (docs/worlds.md)."""
SMALLER = ("stream.train_per_class=40", "stream.test_per_class=20")
"""What makes a minute of it: fewer images than the recipes' own."""
FIRST = (
    "40 classes of drawn shapes come in 8 tasks of 5. Four methods adapt the same small pretrained CLIP; after each "
    "task all classes seen so far are tested, and the task is not told."
)
ADAPTING = ("zero_shot", "tpt_prompt", "rlcf_encoder")
SHIFTED = (
    f"stream.data=[{{name: microworld, style: textured, severity: 5, train_per_class: 0, test_per_class: {PICTURES}}}]",
)
SECOND = (
    "Now the pretrained model meets pictures with busy grounds, a look that it has never seen. There is nothing to "
    "train on: each picture, alone and without its answer, adapts the model that is to answer it, and the next one "
    "starts anew."
)
COLUMNS = ("average", "last", "forgetting")
TASKS = 8
NAME = max(map(len, ("method", *METHODS)))
"""Width of the names."""


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the runs and the report")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="seed of all four runs")] = 0,
    again: Annotated[bool, typer.Option("--again", help="start anew")] = False,
) -> None:
    """Watch a pretrained CLIP learn new classes, and forget. About a minute, nothing is downloaded."""
    from perdure.files.folders import require_folder

    require_folder(out, setting="--out")
    print("\n".join(textwrap.wrap(FIRST, min(width() or 99, 99))), end="\n\n", flush=True)
    recipes = _recipes(METHODS, SMALLER, out, seed)
    folders = {name: recipe.folder(seed) for name, recipe in recipes.items()}
    from perdure import api  # brings torch
    from perdure.reporting import report

    with _table(folders) as show:
        for name, recipe in recipes.items():
            with libraries_aside():
                api.execute(recipe, again=again, quiet=True)
            show(name)
    seen = _seen({name: _row(folder) for name, folder in folders.items()})
    pages = report(list(folders.values()), out, seen=seen)
    _say("", seen)
    print(f"The report, with figures: {pages['report.html']}\n", flush=True)
    _adapt(out, seed, again)
    print("\nNext:")
    print(f"  perdure show {folders['ranpac']}")
    print("  perdure list recipes")
    print("  perdure cp prototype/microworld my.yaml")
    print("For images of your own, a folder a class, set in my.yaml:")
    print("  stream.data: {name: image_folder, root: my_images}")
    print("  stream.step: classes a task")
    print("prototype and ranpac read no class names. The others do, and need a CLIP that knows")
    print("your words as well: models.clip.weights, such as ViT-B/32.")


def _adapt(out: Path, seed: int, again: bool) -> None:
    """The second part: the same picture, answered as it is and after adapting to it."""
    from perdure import api
    from perdure.reporting import report

    _say(SECOND, "")
    folders, rows = {}, {}
    for name, recipe in _recipes(ADAPTING, SHIFTED, out / "shifted", seed).items():
        folders[name] = recipe.folder(seed)
        with libraries_aside():
            api.execute(recipe, again=again, quiet=True)
        rows[name] = _right(folders[name])
        print(f"{name:<{NAME}} {100 * sum(rows[name].values()) / len(rows[name]):6.1f} %", flush=True)
    seen = _gained(rows)
    pages = report(list(folders.values()), out / "shifted", seen=seen)
    _say("", seen)
    print(f"The report: {pages['report.html']}")


def _recipes(methods: Sequence[str], changes: Sequence[str], out: Path, seed: int) -> dict[str, Any]:
    """Those of the methods on the embedded world."""
    from perdure.recipe import load

    places = [f"run.out={out}", f"run.seed={seed}"]
    return {name: load(f"{name}/microworld", [*changes, *places, f"run.name={name}"]) for name in methods}


def _say(*parts: str) -> None:
    for line in "\n".join(parts).split("\n"):
        print(*(textwrap.wrap(line, width() or 1000) or [""]), sep="\n", flush=True)


class _table:
    """The table as it fills: redrawn on a terminal, one line a finished method elsewhere."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.folders = folders
        self.live: Any = None
        self.done = threading.Event()

    def __enter__(self) -> Callable[[str], None]:
        if not sys.stdout.isatty():
            print(table_lines({}, total=None)[0], flush=True)
            return lambda name: print(table_lines({name: _cells(self.folders[name])}, total=None)[1], flush=True)
        from rich.console import Console
        from rich.live import Live

        console = Console(file=getattr(sys.stdout, "plain", sys.stdout))
        self.drawn = self._drawn()
        self.live = Live(self.drawn, auto_refresh=False, console=console)
        self.live.start()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return lambda name: None

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.done.set()
            self.thread.join()
            self._draw()
            self.live.stop()

    def _watch(self) -> None:
        while not self.done.wait(0.5):
            self._draw()

    def _draw(self) -> None:
        """Again where a number has come."""
        if (drawn := self._drawn()) != self.drawn:
            self.drawn = drawn
            self.live.update(drawn, refresh=True)

    def _drawn(self) -> Any:
        from rich.text import Text

        rows = {name: _cells(folder) for name, folder in self.folders.items()}
        return Text("\n".join(["accuracy on all classes seen, in percent", *table_lines(rows, total=width())]))


def table_lines(rows: Mapping[str, Sequence[str]], *, total: int | None) -> list[str]:
    """The head and a line a method, aligned. Where `total` columns do not hold all tasks, evenly spaced ones are left,
    with the first and the last."""
    head = [*(f"task {t}" for t in range(1, TASKS + 1)), *COLUMNS]
    widths = [max(6, len(title)) for title in head]
    fixed = NAME + sum(w + 1 for w in widths[TASKS:])
    most = TASKS if total is None else max(min((total - fixed) // (widths[0] + 1), TASKS), 1)
    spaced = {round(i * (TASKS - 1) / (most - 1)) for i in range(most)} if most > 1 else {TASKS - 1}
    kept = [*sorted(spaced), *range(TASKS, len(head))]
    lines = []
    for name, cells in {"method": head, **rows}.items():
        lines.append(" ".join([f"{name:<{NAME}}", *(f"{cells[i]:>{widths[i]}}" for i in kept)]))
    return lines


def _cells(folder: Path) -> list[str]:
    """Accuracy after each task so far, then the summary once the run is through."""
    row = _row(folder)
    steps = [f"{value:.1f}" for value in row["steps"]]
    whole = [f"{row[name]:.1f}" for name in COLUMNS] if len(steps) == row["tasks"] else []
    return [*steps, *[""] * (TASKS - len(steps)), *whole, *[""] * (len(COLUMNS) - len(whole))]


def _row(folder: Path) -> dict[str, Any]:
    from perdure.metrics import continual
    from perdure.run_folder import run_files

    saved = run_files.read_scores(folder) or {"rows": [], "tasks": []}
    tasks = len(saved["tasks"])
    if not saved["rows"]:
        return {"steps": [], "tasks": -1}
    measured = continual.from_rows(saved["rows"], tasks=tasks, metric="accuracy")
    steps = continual.step_accuracies(measured.matrix, counts=measured.counts)
    summary = continual.summary(measured.matrix, counts=measured.counts) if None not in steps else {}
    tested = sum(row["n"] for row in saved["rows"] if row["after"] == tasks - 1)
    return {"steps": [s for s in steps if s is not None], "tasks": tasks, "tested": tested, **summary}


def _seen(rows: dict[str, dict[str, Any]]) -> str:
    """What the numbers say, and how far they can be trusted."""
    order = sorted(rows, key=lambda name: -rows[name]["last"])
    ranking = ", ".join(f"{name} {rows[name]['last']:.1f}" for name in order)
    most = max(rows, key=lambda name: rows[name]["forgetting"])
    n = rows[order[0]]["tested"]
    error = 100 * (0.25 / n) ** 0.5
    return (
        f"After the last task, on all 40 classes: {ranking} %.\n"
        f"{most} forgot most: {rows[most]['forgetting']:.1f} points of what it had once known. "
        f"continual_clip never learns: its accuracy falls only because there are more classes to choose from.\n"
        f"One seed and {n} test images: differences under {2 * error:.0f} points mean little."
    )


def _right(folder: Path) -> dict[str, bool]:
    """Whether each test picture was answered rightly, by its id."""
    from perdure.evaluate import read_records

    return {r["id"]: r["predicted"] == r["target"] for r in read_records(folder / "predictions" / "0_0.jsonl")}


def _gained(rows: Mapping[str, Mapping[str, bool]]) -> str:
    """How many pictures adapting put right and wrong, and whether that could be chance."""
    from perdure.gate.paired import mcnemar

    first, *others = rows
    said = []
    for name in others:
        better = sum(now and not rows[first][i] for i, now in rows[name].items())
        worse = sum(rows[first][i] and not now for i, now in rows[name].items())
        chance = mcnemar(worse, better)
        sure = "more than chance would" if chance < 0.05 and better > worse else "which may be chance"
        sure = "which is a loss" if chance < 0.05 and worse > better else sure
        said.append(f"{name} put {better} pictures right that {first} had wrong, and {worse} wrong: {sure}.")
    return f"Of {len(rows[first])} pictures with busy grounds: " + " ".join(said)
