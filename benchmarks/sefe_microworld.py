"""SEFE, its halves and its baselines on microworld's eight instruction tasks, from data to table.

    python benchmarks/sefe_microworld.py data --work DIR                     # the tree, and train_x20.json
    python benchmarks/sefe_microworld.py run sefe lora --seeds 0 1 --work DIR    # as `perdure run` does
    python benchmarks/sefe_microworld.py table --work DIR --out benchmarks/results/sefe_microworld

Knows commands and the folders of runs. The chat model that `prepare asd` asks is microworld's own (`scene_chat`): it
knows the scenes, so sentences are true by construction. Does not know methods.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from perdure.api import run as run_recipe
from perdure.data.microworld.scene_chat import serve
from perdure.metrics import continual
from perdure.streams.instruction import METRICS

METHODS = {
    "zero_shot": "zero_shot_llm/microworld",
    "lora": "lora_sequential/microworld",
    "lora_asd": "lora_sequential/microworld_asd",
    "lora_reglora": "sefe/microworld_reglora",
    "sefe": "sefe/microworld",
    "replay": "lora_replay/microworld",
    "multitask": "multitask/microworld",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("data", "run", "table"))
    parser.add_argument("names", nargs="*", help=", ".join(METHODS))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--world", type=int, default=0, help="seed of the data; settings were chosen on 100")
    parser.add_argument("--set", nargs="*", default=[], help="further key=value of the recipes")
    parser.add_argument("--label", default="", help="added to the runs' names")
    parser.add_argument("--out", type=Path, help="of the table, without ending")
    given = parser.parse_args()
    root = given.work / f"coin_{given.world}"
    if given.what == "data":
        make_data(root, given.world)
    elif given.what == "run":
        for seed in given.seeds:
            for name in given.names or METHODS:
                run(name, seed, root, given.work / "runs", given.set, given.label)
    else:
        rows = cells(given.work / "runs")
        print(table(rows))
        if given.out is not None:
            write_csv(given.out.with_suffix(".csv"), rows)


def make_data(root: Path, seed: int) -> None:
    """The tree, and a fifth of each task's answers in other styles, by the commands that a user would type."""
    perdure("data", "make", "microworld", "--as", "coin", "--out", str(root), f"seed={seed}")
    server = serve(root)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/v1"
    perdure("prepare", "asd", "--root", str(root), "--share", "20", "--endpoint", address, "--model", "microworld")
    server.shutdown()
    server.server_close()


def run(name: str, seed: int, root: Path, out: Path, more: list[str], label: str) -> None:
    """One recipe with one seed, as ``perdure run`` does it; a finished one is left as it is."""
    folder = f"{name}{label}"
    began = time.monotonic()
    asked = [f"stream.root={root}", f"run.out={out}", f"run.name={folder}", f"run.seeds=[{seed}]", *more]
    run_recipe(METHODS[name], asked)
    print(f"{folder} seed {seed}: {time.monotonic() - began:.0f} s", flush=True)


def numbers(name: str, seed: int, work: Path) -> dict[str, float]:
    """What a method comes to in the world of that seed, with that seed; made and run if it is not there."""
    root = work / f"coin_{seed}"
    if not (root / "annotations" / "OCRVQA" / "train_x20.json").is_file():
        make_data(root, seed)
    run(name, seed, root, work / "runs", [], "")
    found = summary([r for r in cells(work / "runs", name) if r["seed"] == seed])
    return {number: value for number, value in found.items() if value is not None}


def perdure(*arguments: str) -> None:
    """``perdure ...``"""
    subprocess.run([sys.executable, "-m", "perdure", *arguments], check=True)


def cells(runs: Path, name: str = "*") -> list[dict[str, Any]]:
    """One row a measured number of every run (or of that name)."""
    found = []
    for path in sorted(runs.glob(f"{name}/seed_*/scores.json")):
        scores, name = json.loads(path.read_text()), path.parent.parent.name
        for row in scores["rows"]:
            for metric in METRICS:
                place = {"after": row["after"], "asked": row["asked"], "task": scores["tasks"][row["asked"]]}
                seed = int(path.parent.name.removeprefix("seed_"))
                value = row["values"][metric]
                found.append({"run": name, "seed": seed, **place, "metric": metric, "n": row["n"], "value": value})
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and sample standard deviation over seeds of the field's numbers, as Markdown."""
    heads = ("MFT", "MFN", "MAA", "BWT", "errors learned", "errors final", "lost superficially", "lost essentially")
    lines = ["| run | n | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    order = [*METHODS, *sorted({r["run"] for r in rows} - set(METHODS))]
    for name in order:
        seeds = sorted({r["seed"] for r in rows if r["run"] == name})
        numbers = [summary([r for r in rows if r["run"] == name and r["seed"] == s]) for s in seeds]
        if numbers:
            said = [_told([n[head] for n in numbers]) for head in heads]
            lines.append(f"| {name} | {len(seeds)} | " + " | ".join(said) + " |")
    return "\n".join(lines)


def summary(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """A run's numbers: SEFE's four, format errors, and what old tasks lost in either way."""
    size = 1 + max(r["asked"] for r in rows)
    parts = {metric: np.full((size, size), np.nan) for metric in METRICS}
    for r in rows:
        parts[r["metric"]][r["after"], r["asked"]] = r["value"]
    last, learned = ({m: a[-1] for m, a in parts.items()}, {m: np.diagonal(a) for m, a in parts.items()})

    def lost(metric: str) -> float | None:
        change = (last[metric] - learned[metric])[:-1]
        return None if np.isnan(change).any() else float(change.mean())

    return {
        **continual.sefe(parts["answer_accuracy"]),
        "errors learned": _mean(learned["format_errors"]),
        "errors final": _mean(last["format_errors"]),
        "lost superficially": lost("superficial"),
        "lost essentially": lost("essential"),
    }


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Every cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _mean(values: np.ndarray) -> float | None:
    return None if np.isnan(values).any() else float(values.mean())


def _told(values: list[float | None]) -> str:
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return "-"
    return f"{np.mean(known):.1f}" + (f" ± {np.std(known, ddof=1):.1f}" if len(known) > 1 else "")


if __name__ == "__main__":
    main()
