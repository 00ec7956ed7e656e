"""What a person sees while a long stage runs: two live lines on a terminal, one plain line now and then elsewhere; and
how long the rest of a run takes.

Knows standard error, rates and time left. Does not know what a step does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from perdure.errors import printable

PLAIN_EVERY = 30.0
"""Seconds between lines where standard error is not a terminal."""
LIVE_AFTER = 0.5
"""Seconds before a stage is shown live: shorter ones would only flicker."""
REDRAW = 0.2
"""Seconds between live drawings."""
BAR = 20
"""Columns of the bar."""


class Outlook:
    """How long the rest of a run takes, by the seconds that its finished tasks took.

    Args:
        learned: examples that each task trains on.
        tested: examples that are tested after each task.
    """

    def __init__(self, learned: Sequence[int], tested: Sequence[int]) -> None:
        self.learned, self.tested = learned, tested
        self.examples, self.seconds = [0, 0], [0.0, 0.0]
        """Of the tasks that are done: learning, testing."""
        self.after = -1
        self.began = time.monotonic()
        """Of the present task."""
        self.runs = 0
        """Runs that follow this one and take as long, as of other seeds."""

    def note(self, task: int, learn_seconds: float, test_seconds: float) -> None:
        """A task is done."""
        self.after, self.began = task, time.monotonic()
        for i, (seconds, counts) in enumerate([(learn_seconds, self.learned), (test_seconds, self.tested)]):
            self.seconds[i] += seconds
            self.examples[i] += counts[task]

    def left(self) -> float | None:
        """Seconds to the end; None as long as no task is done. The present task's own time is taken off."""
        if not any(self.seconds):
            return None
        rest = self._time_of(range(self.after + 1, len(self.learned)))
        whole = self._time_of(range(len(self.learned)))
        return max(rest - (time.monotonic() - self.began), 0.0) + self.runs * whole

    def _time_of(self, tasks: Sequence[int]) -> float:
        """Seconds of these tasks: learning and testing each in proportion to its examples."""
        total = 0.0
        for counts, examples, seconds in zip((self.learned, self.tested), self.examples, self.seconds):
            total += seconds * sum(counts[t] for t in tasks) / examples if examples else 0.0
        return total


class Progress:
    """Progress of one stage. Use as a context manager; call `advance` after each step.

    Args:
        whole: seconds left of the whole run; None where they are not known yet.
        memory: peak bytes.
    """

    def __init__(
        self,
        label: str,
        *,
        total: int,
        start: int = 0,
        show: bool = True,
        whole: Callable[[], float | None] = lambda: None,
        memory: Callable[[], int] = lambda: 0,
    ) -> None:
        self.label, self.total, self.start, self.done = printable(label, keep=""), total, start, start
        self.began = self.last_line = time.monotonic()
        self.values: Mapping[str, Any] = {}
        self.whole, self.memory = whole, memory
        self._terminal = show and sys.stderr.isatty()
        self._live: Any = None
        self._show = show

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def advance(self, **values: Any) -> None:
        """One step is done; `values` (tensors or numbers) are shown at the display's own pace."""
        self.done += 1
        self.values = values or self.values
        now = time.monotonic()
        if self._terminal and now - self.began > LIVE_AFTER and now - self.last_line > REDRAW:
            self.last_line = now
            self._draw(now)
        elif self._show and not self._terminal and now - self.last_line > PLAIN_EVERY:
            self.last_line = now
            print(self.line(now), file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """Stage, position, values, rate and time left on one plain line."""
        return f"{self.label}: {self._position()} {self._rates(now)}"

    def lines(self, now: float, width: int) -> list[str]:
        """Two lines for a terminal: where the run is, and how fast it goes."""
        filled = BAR * self.done // max(self.total, 1)
        bar = "#" * filled + "-" * (BAR - filled) if width >= 72 else ""
        peak = f", {self.memory() / 2**30:.1f} GiB" if self.memory() else ""
        second = " ".join(filter(None, (bar, self._rates(now) + peak)))
        return [text[:width] for text in (f"{self.label}  {self._position()}", f"  {second}")]

    def _position(self) -> str:
        values = " ".join(f"{name} {float(value):.4g}" for name, value in self.values.items())
        return " ".join(filter(None, (f"{self.done}/{self.total}", values)))

    def _rates(self, now: float) -> str:
        rate = (self.done - self.start) / max(now - self.began, 1e-9)
        whole = self.whole()
        of_run = "" if whole is None else f"; run {clock(whole)} left"
        return f"{rate:.2f} it/s, {clock((self.total - self.done) / max(rate, 1e-9))} left{of_run}"

    def _draw(self, now: float) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            console = Console(stderr=True)
            self._live = Live(console=console, transient=True, auto_refresh=False)
            self._live.start()
        drawn = Text("\n".join(self.lines(now, self._live.console.width - 1)), no_wrap=True, overflow="crop")
        self._live.update(drawn, refresh=True)


def clock(seconds: float) -> str:
    """``0:07``, ``1:02:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
