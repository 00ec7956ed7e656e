"""SEFE and sequential LoRA on a small real CoIN: real images and texts, and a real tiny Llama that reads and answers.

    python benchmarks/sefe_coin_mini.py --packs DIR --work DIR --out benchmarks/results/sefe_coin_mini

DIR holds the folders `coin_mini` (annotations in LLaVA's form), `tiny_imagenet_subset` and `coco_mini` (images, in
archives), and `weights_stories260k` (a Llama of 0.26 million parameters that has read children's stories). The tower is
micro-clip, which has seen shapes only. So figures show that the path works on real files, not what a method is worth.

Knows folders, commands and the recipe's text. Other styles are made by the rules of `prepare asd` alone: no chat model.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import time
from pathlib import Path

from sefe_microworld import cells, table, write_csv

from perdure.api import run_recipe
from perdure.prepare.asd import diversify_file

TASKS = {
    "ScienceQA": ("scienceqa", "choice"),
    "ImageNet": ("imagenet", "category"),
    "Grounding": ("grounding", "box"),
    "VQA": ("vqav2", "questions"),
    "Caption": ("exact", "question"),
}
"""Name -> scorer, and kind of `prepare asd`."""
METHODS = {
    "lora": ("lora_sequential", "train"),
    "lora_asd": ("lora_sequential", "train_x20"),
    "lora_reglora": ("sefe", "train"),
    "sefe": ("sefe", "train_x20"),
}
SETTINGS = {
    "rank": 8,
    "alpha": 16,
    "lr": 2e-3,
    "projector_lr": 1e-3,
    "batch_size": 8,
    "max_length": 512,
    "gradient_checkpointing": False,
    "max_new_tokens": 24,
    "generate_batch": 50,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=160, help="conversations a task")
    parser.add_argument("--test", type=int, default=50, help="questions a task")
    parser.add_argument("--weight", type=float, default=2500.0, help="of RegLoRA's penalty")
    parser.add_argument("--out", type=Path, help="of the figures, without ending")
    given = parser.parse_args()
    unpack(given.packs, given.work / "images")
    make_styles(given.packs, given.work)
    for seed in given.seeds:
        for name in given.methods:
            recipe = given.work / f"{name}.yaml"
            recipe.write_text(json.dumps(recipe_of(name, given)))
            began = time.monotonic()
            run_recipe(recipe, [f"run.seeds=[{seed}]"])
            print(f"{name} seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
    rows = cells(given.work / "runs")
    print(table(rows))
    for task in TASKS:
        print(task, _last_of_task(rows, task))
    if given.out is not None:
        write_csv(given.out.with_suffix(".csv"), rows)


def unpack(packs: Path, images: Path) -> None:
    """The images below `images`, in folders called like their packs."""
    for pack, archive in (("tiny_imagenet_subset", "tiny_imagenet_subset.tar.xz"), ("coco_mini", "images.tar.xz")):
        if not (images / pack).is_dir():
            with tarfile.open(packs / pack / archive) as file:
                file.extractall(images / pack, filter="data")


def make_styles(packs: Path, work: Path) -> None:
    """``train_x20.json`` of each task, by rules; what they cannot do stays as it is, and the manifest says so."""
    for name, (_, kind) in TASKS.items():
        out = work / "annotations" / name / "train_x20.json"
        if not out.is_file():
            made = diversify_file(packs / "coin_mini" / name / "train.json", out, task=name, kind=kind, share=20)
            print(name, made["styles"], f"not done: {len(made['failed'])}", flush=True)


def recipe_of(name: str, given: argparse.Namespace) -> dict:
    """The recipe of a method, as a mapping."""
    method, train = METHODS[name]
    tasks = []
    for task, (scorer, _) in TASKS.items():
        folder = given.packs / "coin_mini" / task
        own = folder if train == "train" else given.work / "annotations" / task
        form = {"form": "explanation"} if task == "Caption" else {}
        files = {"train": str(own / f"{train}.json"), "test": str(folder / "test.json")}
        tasks.append({"name": task, "scorer": scorer, "images": str(given.work / "images"), **files, **form})
    limits = {"train_per_task": given.train, "test_per_task": given.test}
    parts = {"llm": str(given.packs / "weights_stories260k"), "vision": "micro-clip", "dtype": "float32"}
    return {
        # One file has five questions of the same id: they are left out and counted.
        "stream": {"name": "instruction", "tasks": tasks, "on_fault": "skip", **limits},
        "models": {"llm": {"name": "llava", **parts}},
        "method": {"name": method, "tuning": SETTINGS, **({"weight": given.weight} if method == "sefe" else {})},
        "evaluate": {"batch_size": 50},
        # Some of ScienceQA's questions are longer than what this Llama has read: 512 tokens.
        "run": {"out": str(given.work / "runs"), "name": name, "unreadable": "skip"},
    }


def _last_of_task(rows: list[dict], task: str) -> str:
    """Accuracy and format errors when learned and at the end, by method, mean over seeds."""
    said = []
    for name in METHODS:
        own = [r for r in rows if r["run"] == name and r["task"] == task]
        if not own:
            continue
        place, end = own[0]["asked"], max(r["after"] for r in own)
        pairs = []
        for metric in ("answer_accuracy", "format_errors"):
            values = {
                after: [r["value"] for r in own if r["metric"] == metric and r["after"] == after]
                for after in (place, end)
            }
            pairs.append(" -> ".join(f"{sum(v) / len(v):.1f}" for v in values.values()))
        said.append(f"{name}: {pairs[0]} (format errors {pairs[1]})")
    return "; ".join(said)


if __name__ == "__main__":
    main()
