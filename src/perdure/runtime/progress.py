"""What a person sees while a long stage runs: one live line on a terminal, one plain line now and then elsewhere.

Knows standard error, rates and time left. Does not know what a step does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from perdure.errors import printable

PLAIN_EVERY = 30.0
"""Seconds between lines where standard error is not a terminal."""


class Progress:
    """Progress of one stage. Use as a context manager; call `advance` after each step."""

    def __init__(self, label: str, *, total: int, start: int = 0, show: bool = True) -> None:
        label = printable(label, keep="")
        self.label, self.total, self.start, self.done = label, total, start, start
        self.began = self.last_line = time.monotonic()
        self.values: Mapping[str, Any] = {}
        self._live = _live_bar() if show and sys.stderr.isatty() else None
        self._show = show

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
            self._bar = self._live.add_task(self.label, total=self.total, completed=self.start, values="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def advance(self, **values: Any) -> None:
        """One step is done; `values` (tensors or numbers) are shown at the display's own pace."""
        self.done += 1
        self.values = values or self.values
        now = time.monotonic()
        if self._live and (now - self.last_line > 0.2 or self.done == self.total):
            self.last_line = now
            self._live.update(self._bar, completed=self.done, values=self._text())
        elif self._show and not self._live and now - self.last_line > PLAIN_EVERY:
            self.last_line = now
            print(self.line(now), file=sys.stderr, flush=True)

    def line(self, now: float) -> str:
        """Stage, position, values, rate and time left on one plain line."""
        rate = (self.done - self.start) / max(now - self.began, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        return f"{self.label}: {self.done}/{self.total} {self._text()} {rate:.2f} it/s, {_clock(left)} left"

    def _text(self) -> str:
        return " ".join(f"{name} {float(value):.4g}" for name, value in self.values.items())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _live_bar():
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
