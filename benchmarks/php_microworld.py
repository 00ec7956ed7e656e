"""PHP, its ablations and its baselines on microworld's four audio-visual tasks, in two orders.

    perdure data make microworld --as audio-visual --out DIR
    python benchmarks/php_microworld.py --data DIR --out results.csv

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

import torch

from perdure import recipe
from perdure.evaluate import Evaluation
from perdure.nn.audio_visual.inputs import mel_of, pixels_of
from perdure.run import run
from perdure.runtime import Runtime
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
}
ORDERS = {"first": ["AVE", "LLP", "AVS", "AVQA"], "second": ["AVQA", "AVS", "LLP", "AVE"]}
COLUMNS = ("method", "order", "seed", "after", "after_task", "asked", "asked_task", "metric", "n", "value", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with AVE, LLP, AVS and AVQA")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--orders", nargs="+", default=list(ORDERS), choices=list(ORDERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--split", default="test", choices=["test", "validation"])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of all recipes")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument("--out", type=Path, required=True, help="csv file; lines are added")
    given = parser.parse_args()
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
    stated = [f"stream.data={json.dumps(data, default=str)}", f"stream.order={json.dumps(ORDERS[order])}"]
    stated += [f"stream.seed={seed}"]
    asked = recipe.load(f"{name}/microworld", [*stated, *switches, *given.set])
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
    from perdure.nn.audio_visual.inputs import preprocess

    # Clips have the same names in all four data sets.
    key = f"{task.name}/{example.id}/{example.inputs['frames'][0]}"
    if key not in ready:
        item = preprocess(replace(example, target=None), size=models["clip"].image_size, training=False)
        batch = {name: item[name][None] for name in ("frames", "wave")}
        mel = mel_of(models["audio"], batch, seconds=task.facts.get("clip_seconds", 10.0))
        inputs = {"pixels": pixels_of(batch).numpy(), "logmel": mel.numpy()}
        inputs |= {name: example.inputs[name] for name in ("question",) if name in example.inputs}
        ready[key] = replace(example, inputs=inputs)
    return replace(ready[key], target=example.target)


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
