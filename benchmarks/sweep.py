"""What a sweep costs beside its runs: seconds of an empty run after the first of a process, and runs an hour with one
and with two processes.

    python benchmarks/sweep.py --cells 24 --jobs 1 2 [--out FILE]

An empty run trains a network of eight units for one pass over ten digits a class: two tasks, two tests, a card. The
first run of a process loads the libraries; its seconds are stated by themselves. The same runs, each by a `perdure run`
of its own, are timed for comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPES = {
    "empty": """stream: {name: class_incremental, data: digits, step: 5, train_per_class: 10, test_per_class: 5}
models: {net: {name: mlp, inputs: 192, hidden: 8}}
method: {name: sgd, epochs: 1}
run: {device: cpu, threads: 1}
""",
    "er": """base: er/digits
method: {epochs: 1}
run: {device: cpu, threads: 1, seeds: [0]}
""",
}


def sweep(recipe: str, jobs: int, cells: int) -> dict:
    """One sweep in a folder of its own, and what it took."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cell.yaml").write_text(RECIPES[recipe])
        seeds = ",".join(map(str, range(cells)))
        command = [
            sys.executable,
            "-m",
            "perdure",
            "sweep",
            "cell.yaml",
            "--seeds",
            seeds,
            "--jobs",
            str(jobs),
            "--yes",
        ]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        outcomes = [json.loads(f.read_text()) for f in Path(folder).glob("runs/*/outcomes/*.json")]
        by_process: dict[str, list[dict]] = {}
        for one in outcomes:
            by_process.setdefault(one["where"], []).append(one)
        seconds = {o["key"]: o["seconds"] for o in outcomes}
        first = [max(those, key=lambda o: o["seconds"])["key"] for those in by_process.values()]
        later = [value for key, value in seconds.items() if key not in first]
        cpu = {o["key"]: o["cpu_seconds"] for o in outcomes}
        later_cpu = [value for key, value in cpu.items() if key not in first]
        return {
            "recipe": recipe,
            "jobs": jobs,
            "runs": len(outcomes),
            "wall": round(wall, 2),
            "cpu": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
            "first": [round(seconds[key], 2) for key in first],
            "first_cpu": [round(cpu[key], 2) for key in first],
            "later_cpu_median": round(statistics.median(later_cpu), 3),
            "later_cpu_worst": round(max(later_cpu), 3),
            "later_median": round(statistics.median(later), 3),
            "later_worst": round(max(later), 3),
            "per_hour": round(3600 * len(outcomes) / wall),
        }


def alone(recipe: str, cells: int) -> dict:
    """The same runs, each by a command of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cell.yaml").write_text(RECIPES[recipe])
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        for seed in range(cells):
            command = [sys.executable, "-m", "perdure", "run", "cell.yaml", f"run.seed={seed}", "--quiet"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"recipe": recipe, "runs": cells, "wall": round(wall, 2), "cpu": round(cpu, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--recipes", nargs="+", default=["empty", "er"], choices=list(RECIPES))
    parser.add_argument("--alone", type=int, default=3, help="runs by commands of their own")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg(), "sweeps": [], "alone": []}
    for recipe in options.recipes:
        for jobs in options.jobs:
            found["sweeps"].append(sweep(recipe, jobs, options.cells))
            print(found["sweeps"][-1], flush=True)
        if options.alone:
            found["alone"].append(alone(recipe, options.alone))
            print(found["alone"][-1], flush=True)
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
