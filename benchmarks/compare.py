"""Two ways to do one thing, taken in turn: least CPU time and peak memory of each.

CPU seconds are those of this process (all its threads), so that other work on the machine does not enter. Knows clocks
and the resident set (Linux). Does not know what is done.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def compare(plain: Callable[[], Any], ours: Callable[[], Any], *, repeats: int, memory: bool = True) -> dict[str, Any]:
    """Least CPU time of both, taken in turn, and then peak memory above the start: looking at memory costs time."""
    schedules = {"plain": plain, "ours": ours}
    times: dict[str, list[float]] = {name: [] for name in schedules}
    for _ in range(repeats):
        for name, call in schedules.items():
            began = time.process_time()
            call()
            times[name].append(time.process_time() - began)
    peaks = dict.fromkeys(schedules, 0.0)
    for _ in range(min(repeats, 4) if memory else 0):
        for name, call in schedules.items():
            with PeakMemory() as looked:
                call()
            peaks[name] = max(peaks[name], looked.peak)
    return {
        "plain seconds": min(times["plain"]),
        "ours seconds": min(times["ours"]),
        "time ratio": min(times["plain"]) / min(times["ours"]),
        "plain MB": peaks["plain"] / 1e6,
        "ours MB": peaks["ours"] / 1e6,
        # None: not looked at, or too short to be seen at work
        "memory ratio": peaks["plain"] / peaks["ours"] if peaks["ours"] else None,
    }


class PeakMemory:
    """Largest resident set above that at the start, by looking every few milliseconds (Linux)."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.start, self.peak, self.done = resident(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.003):
            self.peak = max(self.peak, resident() - self.start)


def resident() -> float:
    """Resident bytes of this process."""
    return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
