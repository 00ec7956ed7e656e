"""What `perdure sweep` shows: what it comes to, how it stands while it goes, what has come of it.

Knows tallies and records of sweeps, and lines. Does not know how runs are made.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.cli._layout import columns, width
from perdure.errors import printable

if TYPE_CHECKING:
    from perdure.sweeping import Plan
    from perdure.sweeping.executors import Place
    from perdure.sweeping.jobs import Outcome
    from perdure.sweeping.record import Standing
    from perdure.sweeping.tally import Tally

SHOWN = 8
"""Runs at work that are listed live."""


def outlook(plan: Plan, place: Place, *, listed: bool, measure: bool) -> list[str]:
    """How many runs, what is finished, what they will cost, where they lie."""
    study, todo = plan.study, plan.todo
    each = (
        f"{len(plan.arms)} recipe{'s' * (len(plan.arms) > 1)} and methods" if len(plan.arms) > 1 else plan.arms[0].name
    )
    count = f"{len(plan.cells)} run{'s' * (len(plan.cells) != 1)}"
    lines = [f"{plan.name}: {count} of {each}, {len(plan.cells) - len(todo)} of them finished"]
    if study.search:
        lines = [f"{plan.name}: {study.search} trials of {each}"]
    if study.select != "none":
        by = f"one setting is chosen by {plan.metric} on {study.select.replace('-', ' ')} examples"
        by = by.replace("first task examples", "validation examples of the first task")
        lines.append(f"{by}, and run on fresh seeds; no test example is asked before")
    lines += _cost(plan, place, measure=measure)
    lines.append(f"in {plan.folder}, {shutil.disk_usage(_above(plan.folder)).free / 2**30:.0f} GiB free")
    if listed:
        source = {arm.name: arm.source for arm in plan.arms}
        rows = [[cell.key, source[cell.arm], "finished" if cell not in todo else ""] for cell in plan.cells]
        lines += columns(rows, indent="  ", total=width())
    return [line for line in lines if line]


def _cost(plan: Plan, place: Place, *, measure: bool) -> list[str]:
    """Hours, disk and memory of what is to do; of each recipe and method, where they differ."""
    from perdure.cli._layout import duration
    from perdure.files.sizes import in_words
    from perdure.sweeping.costs import cost

    if not plan.todo and not plan.study.search:
        return []
    found = cost(plan, measure=measure) if plan.todo else None
    if found is None:
        return ["their time and disk are not known (--forecast measures one run of each)"]
    at_once = max(place.jobs or len(place.gpus) or 1, 1)
    each = ", ".join(f"{arm} {duration(seconds)}" for arm, seconds in found.each.items())
    memory = f", {in_words(found.memory)} of memory each" if found.memory else ""
    return [
        f"about {duration(found.seconds / at_once)}, {in_words(found.disk)} of disk{memory}, {found.basis}",
        *([f"a run: {each}"] if len(found.each) > 1 else []),
    ]


class Live:
    """How a sweep goes, on standard error: a table on a terminal, a line for each run that ends elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet, self.terminal = quiet, sys.stderr.isatty()
        self.drawn: Any = None
        self.last = 0.0

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        if self.drawn is not None:
            self.drawn.stop()

    def tell(self, tally: Tally, key: str, outcome: Outcome | None) -> None:
        """See `tally.Tell`."""
        if self.quiet:
            return
        if outcome is not None:
            text = printable(self.line(tally, key, outcome))
            if self.drawn is not None:
                self.drawn.console.print(text, markup=False, highlight=False)
            else:
                print(text, file=sys.stderr, flush=True)
        elif self.terminal and time.monotonic() - self.last > 1:
            self.last = time.monotonic()
            self._draw(tally)

    @staticmethod
    def line(tally: Tally, key: str, outcome: Outcome) -> str:
        """A run that has come to an end."""
        from perdure.runtime.progress import clock

        done = f"[{len(tally.outcomes)} of {len(tally.cells)}]"
        left = (
            f", {clock(tally.left)} left" if tally.left is not None and len(tally.outcomes) < len(tally.cells) else ""
        )
        said = f": {outcome.said}" if outcome.said else ""
        return f"{done} {key} {outcome.state}, {clock(outcome.seconds)}{left}{said}"

    def _draw(self, tally: Tally) -> None:
        from rich.console import Console
        from rich.live import Live as Drawing
        from rich.text import Text

        if self.drawn is None:
            self.drawn = Drawing(console=Console(stderr=True), transient=True, auto_refresh=False)
            self.drawn.start()
        columns_ = self.drawn.console.width - 1
        lines = [printable(line, keep="")[:columns_] for line in live_lines(tally)]
        self.drawn.update(Text("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)


def live_lines(tally: Tally) -> Iterator[str]:
    """Counts, then the runs at work with the tasks that they have finished."""
    from perdure.run_folder import lock
    from perdure.runtime.progress import clock
    from perdure.sweeping import record

    states = Counter(outcome.state for outcome in tally.outcomes.values())
    waiting = len(tally.cells) - len(tally.outcomes)
    counts = ", ".join(f"{n} {state}" for state, n in states.items())
    left = f"; {clock(tally.left)} left" if tally.left else ""
    yield f"{tally.plan.name}: {counts}{', ' if counts else ''}{waiting} to do{left}"
    shown = 0
    for cell in tally.cells:
        if cell.key not in tally.outcomes and shown < SHOWN and lock.holder(cell.folder) is not None:
            shown += 1
            scores = record.progress(cell.folder)
            yield f"  {cell.key}  {scores}"


def status(words: Sequence[str], *, as_json: bool) -> str:
    """How the runs of a sweep stand, by its folder alone."""
    from perdure.errors import RecipeError
    from perdure.sweeping import record

    if len(words) > 1:
        raise RecipeError(f"found {len(words)} folders", where="status", expected="one sweep's")
    folder = record.find(Path(words[0]) if words else None)
    known = record.read(folder)
    found = [record.standing(folder, entry) for entry in known["cells"]]
    if as_json:
        runs = [{**asdict(one), "entry": dict(one.entry)} for one in found]
        return json.dumps({"sweep": known["name"], "runs": runs, "choices": known["choices"]}, indent=1)
    counts = Counter(one.state for one in found)
    lines = [f"{known['name']}: " + ", ".join(f"{n} {state}" for state, n in counts.most_common())]
    lines += columns([["run", "state", ""], *map(_row, found)], total=width())
    lines += [chosen(choice) for choice in known["choices"]]
    return "\n".join(lines)


def _row(one: Standing) -> list[str]:
    tasks = f" ({one.done} of {one.total} tasks)" if one.total and one.state != "finished" else ""
    return [one.entry["folder"], one.state + tasks, one.said]


def chosen(choice: Any) -> str:
    """What was chosen, among how many, by what."""
    from perdure.recipe.text import flow

    said = ", ".join(f"{key}={flow(value)}" for key, value in choice["settings"].items()) or "its settings"
    seeds = ", ".join(map(str, choice["seeds"]))
    examples = "validation examples" if choice["by"] == "validation" else "validation examples of the first task"
    words = {"pruned": "ended early", "failed": "failed"}
    rest = [f"{choice[word]} {meaning}" for word, meaning in words.items() if choice[word]]
    among = f"among {choice['tried']} settings" + (f" ({', '.join(rest)})" if rest else "")
    by = f"{choice['metric']} {choice['value']:.2f} on {examples}, seeds {seeds}"
    return f"{choice['arm']}: {said}, chosen {among} by {by}"


def ended(tally: Tally) -> list[str]:
    """The table of what finished, what was chosen, what did not come to its end, and what to type next."""
    from perdure.reporting import report

    folder = tally.plan.folder
    phase = "chosen" if tally.choices else "grid"
    done = [c for c in tally.cells if c.phase == phase and tally.outcomes[c.key].state == "finished"]
    lines = [chosen(vars(choice)) for choice in tally.choices] + ([tally.remark] if tally.remark else [])
    if done:
        place = folder / "chosen" if tally.choices else folder
        pages = report([cell.folder for cell in done], place)
        lines += _table([cell.folder for cell in done])
        lines += [f"The report, with figures: {pages['report.html']}"]
        lines += [f"For a paper: perdure report {place} --table wide --format latex"]
    wrong = [(key, one) for key, one in tally.outcomes.items() if one.state not in ("finished", "pruned")]
    lines += [f"{key}: {one.state}: {one.said}" for key, one in wrong]
    if wrong:
        lines.append(
            f"{len(wrong)} of {len(tally.cells)} runs did not come to their end; the same command goes on with them"
        )
    return lines


def _table(folders: Sequence[Path]) -> list[str]:
    """The paper's table of some runs: aligned on a terminal, Markdown in a pipe."""
    from perdure.reporting import load, wide

    made = wide.wide([load.read(folder) for folder in folders])
    if width() is None:
        return wide.written(made, "markdown", "ci").split("\n")
    shown = columns(wide.rows(made, "ci"), total=width())
    return [*shown, *textwrap.wrap(wide.caption(made, "ci"), width() or 80), *made.remarks]


def _above(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
