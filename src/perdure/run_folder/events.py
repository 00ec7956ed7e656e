"""A run's log: events that wait with their tensors unread, and the file that they are written to.

Knows events, numbers and JSON lines. Does not know what happened, nor where a run takes place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.files.text_files import to_json
from perdure.run_folder.run_files import is_there

MOST = 500
"""Events that wait at once."""
LONGEST = 5.0
"""Seconds that they wait."""


class Events:
    """Events that are not written yet."""

    def __init__(self) -> None:
        self._waiting: list[dict[str, Any]] = []
        self._taken = time.monotonic()

    def add(self, event: str, task: int, values: Mapping[str, Any]) -> None:
        """An event that happens now. Its tensors are read later: reading waits for the device."""
        entry = {"time": round(time.time(), 3), "event": event, "task": task}
        self._waiting.append(entry | {k: v.detach() if isinstance(v, Tensor) else v for k, v in values.items()})

    def are_due(self) -> bool:
        """Enough of them wait, or have waited long enough."""
        return len(self._waiting) >= MOST or time.monotonic() - self._taken > LONGEST

    def take(self, gather: Callable[[list[Any]], list[Any]] | None) -> list[dict[str, Any]]:
        """All events, with numbers in place of tensors.

        Args:
            gather: joins lists of all processes; values of events with a `share` then become means over processes.
        """
        events, self._waiting, self._taken = self._waiting, [], time.monotonic()
        lines = _read_tensors(events)
        if gather is not None:
            _take_means([line for line in lines if "share" in line], gather)
        return lines


def write(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Append JSON lines and wait until they are on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8", errors="backslashreplace") as opened:
        opened.writelines(to_json(line) + "\n" for line in lines)
        opened.flush()
        os.fsync(opened.fileno())


def write_log(file: Path, text: str) -> None:
    """Append lines for people, each with local date and time.

    Raises:
        DataError: something else than a file lies in its place.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    is_there(file)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    with file.open("a", encoding="utf-8", errors="backslashreplace") as opened:
        opened.writelines(f"{now} {line}\n" for line in text.split("\n"))


def numbers(line: Mapping[str, Any]) -> dict[str, int | float]:
    """What of an event can be drawn: ``event/name`` -> number."""
    found = {k: v for k, v in line.items() if isinstance(v, int | float) and not isinstance(v, bool) and k != "time"}
    return {f"{line['event']}/{k}": v for k, v in found.items()}


def count_steps(file: Path) -> int:
    """Training steps that a log tells of."""
    if not file.exists():
        return 0
    with file.open(encoding="utf-8", errors="replace") as lines:
        return sum('"event": "step"' in line for line in lines)


def _take_means(lines: list[dict[str, Any]], gather: Callable[[list[Any]], list[Any]]) -> None:
    values = [{k: v for k, v in line.items() if isinstance(v, float) and k != "time"} for line in lines]
    for line, parts in zip(lines, zip(*gather([values]))):
        names = dict.fromkeys(n for part in parts for n in part if n != "share")
        line |= {n: sum(part.get(n, 0.0) * part["share"] for part in parts) for n in names}
        del line["share"]


def _read_tensors(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Events with numbers in place of tensors, for which a device is asked once."""
    tensors = [v for event in events for v in event.values() if isinstance(v, Tensor)]
    single = {id(t): t for t in tensors if t.numel() == 1}
    numbers: dict[int, Any] = {id(t): t.tolist() for t in tensors if t.numel() != 1}
    for kind in {(t.dtype, t.device) for t in single.values()}:
        alike = [(i, t.reshape(())) for i, t in single.items() if (t.dtype, t.device) == kind]
        numbers |= zip([i for i, _ in alike], torch.stack([t for _, t in alike]).tolist())
    return [{k: numbers[id(v)] if isinstance(v, Tensor) else v for k, v in event.items()} for event in events]
