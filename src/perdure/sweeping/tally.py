"""How a sweep stands while it goes: its runs so far, and what has become of them.

Knows cells, outcomes and an executor's face. Does not know the order in which a study goes (`conducting`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from perdure.sweeping import Plan, record
from perdure.sweeping.cells import Cell
from perdure.sweeping.choosing import Choice
from perdure.sweeping.executors import Executor
from perdure.sweeping.jobs import Outcome

TICK = 0.25
"""Seconds between looks at what has come in."""


@dataclass
class Tally:
    """How a sweep stands while it goes."""

    plan: Plan
    cells: list[Cell] = field(default_factory=list)
    """Known so far."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By key."""
    choices: list[Choice] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    asked: int = 0
    """How often somebody asked to stop."""
    stopped: int = 0
    """How often the executor was told so."""
    remark: str = ""
    """What the executor has to say about what still runs."""

    @property
    def stopping(self) -> bool:
        return self.asked > 0

    def count(self, *states: str) -> int:
        return sum(outcome.state in states for outcome in self.outcomes.values())

    @property
    def left(self) -> float | None:
        """Seconds to the end, at the rate of the runs so far; None before the first."""
        fresh = sum(outcome.fresh and outcome.state == "finished" for outcome in self.outcomes.values())
        todo = len(self.cells) - len(self.outcomes)
        return (time.monotonic() - self.began) / fresh * todo if fresh else None


Tell = Callable[[Tally, str, Outcome | None], None]
"""Called with the key of a run that has come to an end and its outcome; now and then with "" and None."""


def begin(cells: Sequence[Cell], tally: Tally) -> list[Cell]:
    """Take cells into the tally; those in which there is work to do."""
    tally.cells += cells
    done = [cell for cell in cells if record.reached(cell.folder, cell.tasks)]
    tally.outcomes |= {cell.key: Outcome(state="finished", fresh=False) for cell in done}
    return [cell for cell in cells if cell.key not in tally.outcomes]


def take(executor: Executor, tally: Tally, tell: Tell) -> list[str]:
    """Keys of jobs that have come to an end, waiting a little for the first."""
    while tally.stopped < tally.asked:
        tally.stopped += 1
        tally.remark = executor.stop()
    came = executor.poll(TICK)
    for key, outcome in came:
        tally.outcomes[key] = outcome
        tell(tally, key, outcome)
    tell(tally, "", None)
    return [key for key, _ in came]


def about(tally: Tally, cell: Cell) -> dict[str, Any]:
    """What the card of a run says of its sweep; of a chosen one also by what it was chosen, among how many."""
    choice = next((c for c in tally.choices if c.arm == cell.arm and cell.phase == "chosen"), None)
    said = tally.plan.about(cell)
    return said if choice is None else said | {"settings": 1, "choice": vars(choice)}
