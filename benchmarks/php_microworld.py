"""PHP, its ablations and its baselines on microworld's four audio-visual tasks, in two orders.

    perdure data make microworld --as audio-visual --out DIR
    python benchmarks/php_microworld.py --data DIR --out results.csv
    python benchmarks/php_microworld.py --table results.csv

Each method is its recipe ``<method>/microworld``; an ablation is ``php/microworld`` with one switch off. The clips are
read by the readers of the real data sets; frames and log-mels are made ready once and kept in memory, which changes no
number. One line a test result; runs that the file holds already are left out, so that the command can be repeated, and
``--minutes`` ends it early.

Knows which runs there are. Does not know any method's inside.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perdure import recipe
from perdure.evaluate import Evaluation
from perdure.families.audio_visual.inputs import mel_of, preprocess
from perdure.loop import run
from perdure.metrics import continual
from perdure.metrics.continual import normalized_mean
from perdure.runtime import Runtime
from perdure.settings import registry
from perdure.types import Example, Examples, Stream

METHODS: dict[str, tuple[str, list[str]]] = {
    "php": ("php", []),
    "php without shallow": ("php", ["method.shallow=false"]),
    "php without mid": ("php", ["method.mid=false"]),
    "php without deep": ("php", ["method.deep=false"]),
    "av_finetune": ("av_finetune", []),
    "av_l2p": ("av_l2p", []),
    "av_dualprompt": ("av_dualprompt", []),
    "av_joint": ("av_joint", []),
    "zero_shot_av": ("zero_shot_av", []),
}
ORDERS = {"first": ["AVE", "LLP", "AVS", "AVQA"], "second": ["AVQA", "AVS", "LLP", "AVE"]}
COLUMNS = ("method", "order", "seed", "after", "after_task", "asked", "asked_task", "metric", "n", "value", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with AVE, LLP, AVS and AVQA")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--orders", nargs="+", default=list(ORDERS), choices=list(ORDERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--split", default="test", choices=["test", "validation"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of all recipes")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument("--out", type=Path, help="csv file; lines are added")
    parser.add_argument("--table", type=Path, help="print a table of this csv file instead")
    given = parser.parse_args()
    if given.table:
        print("\n".join(table(given.table)))
        return
    began, done = time.monotonic(), _done(given.out)
    ready: dict[str, Example] = {}
    for seed in given.seeds:
        for order in given.orders:
            for method in given.methods:
                if (method, order, str(seed)) in done:
                    continue
                if time.monotonic() - began > 60 * given.minutes:
                    return
                _append(given.out, _run(method, order, seed, given, ready))


def _run(method: str, order: str, seed: int, given: Any, ready: dict[str, Example]) -> list[dict[str, Any]]:
    name, switches = METHODS[method]
    roots = {"ave": "AVE", "llp": "LLP", "avs_s4": "AVS", "music_avqa": "AVQA"}
    base = recipe.load(f"{name}/microworld")
    data = [{**one, "root": str(given.data / roots[one["name"]])} for one in base.stream.settings["data"]]
    tasks = [roots[one["name"]] for one in data]
    asked_order = [task for task in ORDERS[order] if task in tasks]
    stated = [f"stream.data={json.dumps(data, default=str)}", f"stream.order={json.dumps(asked_order)}"]
    stated += [f"stream.seed={seed}"]
    fields = registry.field_docs("methods", name)
    more = [one for one in given.set if not one.startswith("method.") or one[7:].split("=")[0] in fields]
    asked = recipe.load(f"{name}/microworld", [*stated, *switches, *more])
    built = recipe.build(asked, seed)
    stream = _prepared(built.stream, built.models, ready, given.split)
    runtime = Runtime(seed=seed, device="cpu", quiet=True)
    evaluation = Evaluation(batch_size=asked.evaluate.batch_size, split=given.split, save_predictions=False)
    began = time.process_time()
    scores = run(built.method, stream, evaluation=evaluation, runtime=runtime)
    seconds = round(time.process_time() - began, 1)
    print(method, order, seed, seconds, scores.matrix()[0], flush=True)
    return [
        {
            "method": method,
            "order": order,
            "seed": seed,
            "after": row["after"],
            "after_task": scores.tasks[row["after"]],
            "asked": row["asked"],
            "asked_task": scores.tasks[row["asked"]],
            "metric": metric,
            "n": row["n"],
            "value": value,
            "seconds": seconds,
        }
        for row in scores.rows
        for metric, value in row["values"].items()
        if isinstance(value, int | float)
    ]


def _prepared(stream: Stream, models: Any, ready: dict[str, Example], split: str) -> Stream:
    """The stream with pixels and log-mels in place of files."""
    tasks = []
    for task in stream:
        parts = {
            part: Examples.of([_ready(example, task, models, ready) for example in getattr(task, part)])
            for part in ("train", split)
        }
        tasks.append(replace(task, **parts))
    return replace(stream, tasks=tuple(tasks))


@torch.inference_mode()
def _ready(example: Example, task: Any, models: Any, ready: dict[str, Example]) -> Example:
    # Clips have the same names in all four data sets.
    key = f"{task.name}/{example.id}/{example.inputs['frames'][0]}"
    if key not in ready:
        item = preprocess(replace(example, target=None), size=models["clip"].image_size, training=False)
        batch = {name: item[name][None] for name in ("frames", "wave")}
        mel = mel_of(models["audio"], batch, seconds=task.facts.get("clip_seconds", 10.0))
        pixels = models["clip"].transform.normalize(batch["frames"][0])
        inputs = {"pixels": pixels.numpy(), "logmel": mel.numpy()}
        inputs |= {name: example.inputs[name] for name in ("question",) if name in example.inputs}
        ready[key] = replace(example, inputs=inputs)
    return replace(ready[key], target=example.target)


def table(file: Path) -> list[str]:
    """Mean and standard deviation over seeds of what is left after the last task, in Markdown."""
    cells: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row["metric"] == "score":
                matrix = cells.setdefault((row["method"], row["order"]), {}).setdefault(
                    row["seed"], np.full((4, 4), np.nan)
                )
                matrix[int(row["after"]), int(row["asked"])] = float(row["value"])
    text = ["| method | order | n | AVE | LLP | AVS | AVQA | mean ↑ | normalized mean ↑ | forgetting ↓ |"]
    text.append("|---" * 10 + "|")
    for order, names in ORDERS.items():
        for method in METHODS:
            runs = list(cells.get((method, order), {}).values())
            if not runs:
                continue
            size = int((~np.isnan(runs[0][:, 0])).sum())
            runs = [matrix[:size, :size] for matrix in runs]
            tasks = [n for n in names if size == 4 or n in ("AVE", "LLP")]
            last = {n: [m[-1, i] for m in runs] for i, n in enumerate(tasks)}
            columns = [last.get(n) for n in ("AVE", "LLP", "AVS", "AVQA")]
            columns += [[m[-1].mean() for m in runs], [normalized_mean(m.tolist()) for m in runs]]
            columns.append([continual.forgetting(m) for m in runs])
            text.append(f"| {method} | {' → '.join(tasks)} | {len(runs)} | " + " | ".join(map(_shown, columns)) + " |")
    return text


def _shown(values: Any) -> str:
    if values is None:
        return ""
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def _done(file: Path) -> set[tuple[str, str, str]]:
    if not file.is_file():
        return set()
    with file.open(newline="") as lines:
        return {(row["method"], row["order"], row["seed"]) for row in csv.DictReader(lines)}


def _append(file: Path, rows: list[dict[str, Any]]) -> None:
    new = not file.is_file()
    with file.open("a", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
