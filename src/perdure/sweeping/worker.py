"""A process that runs the jobs of a local sweep one after another: ``python -m perdure.sweeping.worker``.

Knows one line of JSON a job on standard input, and answers each with one of its outcome on what was standard output;
all else that is printed goes to standard error. It stays warm: libraries are loaded once. Ends with its input, and
stops (after a save) if the process that started it is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict

LOOK_EVERY = 1.0
"""Seconds between looks at who started it."""


def main() -> None:
    """Run jobs until the input ends."""
    from perdure.sweeping.jobs import Job
    from perdure.sweeping.performing import perform

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    for line in sys.stdin:
        outcome = perform(Job(**json.loads(line)))
        print(json.dumps(asdict(outcome)), file=answers, flush=True)


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
