"""What `perdure check --forecast` says of five recipes of different families, and what their runs then take.

    python benchmarks/forecast.py --work work --out benchmarks/results/forecast.json

Each recipe is forecast in a process of its own and then run in another, in turn, on the cores that this process may
use, with one thread; of several rounds the quickest forecast and the quickest run by processor time are compared, with
all rounds beside them. Processor time (user and system) is compared as well as the clock on the wall, because it hangs
less on what else the machine does. A run ends with its card; making the report is no part of it.

One run is also stopped after some of its tasks: what the forecast says is left is compared with what going on takes.

Knows recipes and processes. Does not know how a forecast is made.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RECIPES = {
    "er/digits": (),
    "mg_clip/microworld": ("stream.train_per_class=20", "stream.test_per_class=40"),
    "ranpac/microworld": ("stream.train_per_class=50", "stream.test_per_class=40"),
    "tpt_prompt/microworld": ("stream.limit=40",),
    "clipcap/microworld": ("stream.train.train_scenes=600",),
}
"""Rehearsal, class-incremental CLIP, a frozen backbone, test-time adaptation, captions; with settings that keep each
below half a minute."""
SETTINGS = ("run.device=cpu", "run.threads=1", "run.seed=0")
RUN = """
import sys, time, psutil
from perdure import api, recipe
api.execute(recipe.load(sys.argv[1], sys.argv[2:]), quiet=True)
print("took", time.time() - psutil.Process().create_time(), time.process_time())
"""
STOPPED = """
import sys
from perdure import api, errors, recipe
from perdure.runtime import Runtime
plain = Runtime.log
def log(self, event, **values):
    plain(self, event, **values)
    self.stop_requested = self.stop_requested or (event == "task" and self.task == 1)
Runtime.log = log
try:
    api.execute(recipe.load(sys.argv[1], sys.argv[2:]), quiet=True)
except errors.Interrupted:
    pass
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON of the figures")
    parser.add_argument("--only", help="one recipe")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "rows": []}
    for name, settings in RECIPES.items():
        if given.only in (None, name):
            found["rows"].append(compared(name, settings, given.work, given.rounds))
            print(_line(found["rows"][-1]), flush=True)
            given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.only in (None, "er/digits"):
        found["resumed"] = resumed("er/digits", given.work)
        print(found["resumed"])
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def compared(name: str, settings: tuple[str, ...], work: Path, rounds: int) -> dict[str, Any]:
    """The quickest forecast and the quickest run of a recipe, and all rounds."""
    every = [_round(name, settings, work) for _ in range(rounds)]
    quickest = {key: min((each[key] for each in every), key=lambda one: one["cpu_seconds"]) for key in every[0]}
    return {"recipe": name, "settings": settings, **quickest, "load": os.getloadavg()[0], "rounds": every}


def _round(name: str, settings: tuple[str, ...], work: Path) -> dict[str, Any]:
    shutil.rmtree(work, ignore_errors=True)
    words = [name, *settings, *SETTINGS, f"run.out={work}"]
    said, cost = _told(["-m", "perdure", "check", *words, "--forecast", "--json"])
    wall, cpu = map(float, _told(["-c", RUN, *words])[0].split()[-2:])
    card = next(path for path in work.rglob("card.json") if path.parent.name.startswith("seed_"))
    files = [file for file in card.parent.rglob("*") if file.is_file()]
    truth = {
        "seconds": wall,
        "cpu_seconds": cpu,
        "memory": json.loads(card.read_text(encoding="utf-8"))["peak_memory"]["resident"],
        "disk": sum(file.stat().st_size for file in files),
    }
    forecast = json.loads(said)
    keys = ("seconds", "cpu_seconds", "low", "high", "disk", "parts")
    return {
        "forecast": {key: forecast[key] for key in keys} | {"memory": forecast["memory"]["resident"]},
        "truth": truth,
        "forecasting": {"seconds": cost[0], "cpu_seconds": cost[1]},
    }


def resumed(name: str, work: Path) -> dict[str, Any]:
    """What is left of a run that was stopped after its second task, by the forecast and in truth."""
    shutil.rmtree(work, ignore_errors=True)
    words = [name, *SETTINGS, f"run.out={work}"]
    _told(["-c", STOPPED, *words])
    said, _ = _told(["-m", "perdure", "check", *words, "--forecast", "--json"])
    wall, cpu = map(float, _told(["-c", RUN, *words])[0].split()[-2:])
    forecast = json.loads(said)
    keys = ("left", "left_cpu", "done", "tasks")
    return {"recipe": name, **{key: forecast[key] for key in keys}, "truth": wall, "truth_cpu": cpu}


def _told(words: list[str]) -> tuple[str, tuple[float, float]]:
    """Standard output of a process, and its seconds on the wall and of processors."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, check=True)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, (took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _line(row: dict[str, Any]) -> str:
    said, truth = row["forecast"], row["truth"]
    ratios = {key: f"{said[key] / truth[key]:.2f}" for key in ("seconds", "cpu_seconds", "memory", "disk")}
    return f"{row['recipe']}: {truth['seconds']:.1f} s, {truth['cpu_seconds']:.1f} cpu s; forecast/truth {ratios}"


if __name__ == "__main__":
    main()
