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


def compare(plain: Callable[[], Any], ours: Callable[[], Any], *, repeats: int) -> dict[str, Any]:
    """Least CPU time and peak memory above the start of both, taken in turn."""
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    peaks: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(repeats):
        for name, call in (("plain", plain), ("ours", ours)):
            with PeakMemory() as memory:
                began = time.process_time()
                call()
                times[name].append(time.process_time() - began)
            peaks[name].append(memory.peak)
    return {
        "plain seconds": min(times["plain"]),
        "ours seconds": min(times["ours"]),
        "time ratio": min(times["plain"]) / min(times["ours"]),
        "plain MB": max(peaks["plain"]) / 1e6,
        "ours MB": max(peaks["ours"]) / 1e6,
        "memory ratio": max(peaks["plain"]) / max(max(peaks["ours"]), 1.0),
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
