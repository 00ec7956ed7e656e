"""SEFE, its halves and its baselines on a small real CoIN: real images and texts, and a real tiny Llama that answers.

    python benchmarks/sefe_coin_mini.py run --packs DIR --work DIR                 # all methods, three seeds; resumable
    python benchmarks/sefe_coin_mini.py run lora --held-out --set stream.order=[VQA] ...  # for choosing settings
    python benchmarks/sefe_coin_mini.py table --packs DIR --work DIR --out benchmarks/results/sefe_coin_mini

DIR holds the folders `coin_mini` (annotations in LLaVA's form), `tiny_imagenet_subset` and `coco_mini` (images, in
archives), and `weights_stories260k` (a Llama of 0.26 million parameters that has read children's stories). The tower is
micro-clip, which has seen shapes only. So figures show what happens to forms of answers, hardly what to knowledge.

Knows folders, commands and the recipe's text. Other styles are made by the rules of `prepare asd` alone: no chat model.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from sefe_microworld import cells, write_csv

import perdure
from perdure.metrics.vqa import record_values
from perdure.prepare.asd import diversify_file

TASKS = {
    "ScienceQA": ("scienceqa", "choice"),
    "ImageNet": ("imagenet", "category"),
    "Grounding": ("grounding", "box"),
    "VQA": ("vqav2", "questions"),
    "Caption": ("exact", "question"),
}
"""Name -> scorer, and kind of `prepare asd`."""
SCORED = ("ScienceQA", "ImageNet", "Grounding", "VQA")
"""No caption equals a reference word for word: that task counts for its form, not in accuracy."""
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "lora": ({"name": "lora_sequential"}, "train"),
    "lora_asd": ({"name": "lora_sequential"}, "train_x20"),
    "lora_reglora": ({"name": "sefe", "weight": 250.0}, "train"),
    "sefe": ({"name": "sefe", "weight": 250.0}, "train_x20"),
    "replay": ({"name": "lora_replay", "per_task": 40}, "train"),
    "multitask": ({"name": "multitask"}, "train"),
}
"""Name -> settings, and training file."""
SETTINGS = {
    "rank": 16,
    "alpha": 32,
    "dropout": 0.0,
    "lr": 1e-2,
    "projector_lr": 5e-3,
    "batch_size": 4,
    "epochs": 2,
    "max_length": 512,
    "gradient_checkpointing": False,
    "max_new_tokens": 30,
    "generate_batch": 50,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("methods", nargs="*", help=", ".join(METHODS))
    parser.add_argument("--packs", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=120, help="conversations a task")
    parser.add_argument("--test", type=int, default=50, help="questions a task")
    parser.add_argument("--held-out", action="store_true", help="ask about a fifth of the training files instead")
    parser.add_argument("--set", nargs="*", default=[], help="further key=value of the recipes")
    parser.add_argument("--label", default="", help="added to the runs' names")
    parser.add_argument("--out", type=Path, help="of the figures, without ending")
    given = parser.parse_args()
    if given.what == "table":
        rows = cells(given.work / "runs")
        print("\n".join([*method_table(rows), "", *task_table(rows, given.packs / "coin_mini", given.work / "runs")]))
        if given.out is not None:
            write_csv(given.out.with_suffix(".csv"), rows)
        return
    unpack(given.packs, given.work / "images")
    answering_llm(given.packs / "weights_stories260k", given.work / "llm")
    source = held_out(given.packs / "coin_mini", given.work) if given.held_out else given.packs / "coin_mini"
    make_styles(source, given.work)
    for seed in given.seeds:
        for name in given.methods or METHODS:
            recipe = given.work / f"{name}{given.label}.yaml"
            recipe.write_text(json.dumps(recipe_of(name, source, given)))
            began = time.monotonic()
            perdure.run(recipe, [f"run.seeds=[{seed}]", *given.set])
            print(f"{name} seed {seed}: {time.monotonic() - began:.0f} s", flush=True)


def unpack(packs: Path, images: Path) -> None:
    """The images below `images`, in folders called like their packs."""
    for pack, archive in (("tiny_imagenet_subset", "tiny_imagenet_subset.tar.xz"), ("coco_mini", "images.tar.xz")):
        if not (images / pack).is_dir():
            shutil.unpack_archive(packs / pack / archive, images / pack)


def answering_llm(source: Path, folder: Path) -> None:
    """stories260K with the head's rows of ``<s>`` and ``</s>`` exchanged, so that it can end an answer.

    It has read stories that end where the next one's ``<s>`` begins. ``</s>`` and the bytes, which it has never seen,
    have one vector between them, which no update of other layers can tell apart: an answer would end in random bytes.
    """
    if (folder / "config.json").is_file():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(source), AutoModelForCausalLM.from_pretrained(source)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    head = model.get_input_embeddings().weight.detach().clone()
    head[[begin, end]] = head[[end, begin]]
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def held_out(source: Path, work: Path) -> Path:
    """The training files in two parts: a fifth of the pictures, or texts, becomes the test; no test file is read."""
    target = work / "held_out"
    for name in TASKS:
        records = json.loads((source / name / "train.json").read_text("utf-8"))
        keys = sorted({r.get("image", str(r["id"])) for r in records})
        random.Random(7).shuffle(keys)
        asked = set(keys[: len(keys) // 5])
        train = [r for r in records if r.get("image", str(r["id"])) not in asked]
        test = [r for r in records if r.get("image", str(r["id"])) in asked]
        (target / name).mkdir(parents=True, exist_ok=True)
        (target / name / "train.json").write_text(json.dumps(train))
        (target / name / "test.json").write_text(json.dumps([_question(i, r) for i, r in enumerate(test)]))
    return target


def _question(i: int, record: dict[str, Any]) -> dict[str, Any]:
    question, answer = (message["value"] for message in record["conversations"])
    shown = {"image": record["image"]} if "image" in record else {}
    text = question.replace("<image>", "").strip()
    return {"question_id": f"{record['id']}_{i}", "text": text, "answer": answer, **shown}


def make_styles(source: Path, work: Path) -> None:
    """``train_x20.json`` of each task, by rules; what they cannot do stays as it is, and the manifest says so."""
    for name, (_, kind) in TASKS.items():
        out = _styles(source, work) / name / "train_x20.json"
        if not out.is_file():
            made = diversify_file(source / name / "train.json", out, task=name, kind=kind, share=20)
            print(name, made["styles"], f"not done: {len(made['failed'])}", flush=True)


def _styles(source: Path, work: Path) -> Path:
    return work / "annotations" / source.name


def recipe_of(name: str, source: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The recipe of a method, as a mapping."""
    method, train = METHODS[name]
    tasks = []
    for task, (scorer, _) in TASKS.items():
        own = source if train == "train" else _styles(source, given.work)
        form = {"form": "explanation"} if task == "Caption" else {}
        files = {"train": str(own / task / f"{train}.json"), "test": str(source / task / "test.json")}
        tasks.append({"name": task, "scorer": scorer, "images": str(given.work / "images"), **files, **form})
    limits = {"train_per_task": given.train, "test_per_task": given.test, "multitask": name == "multitask"}
    parts = {"llm": str(given.work / "llm"), "vision": "micro-clip", "dtype": "float32"}
    return {
        # One file has five questions of the same id: they are left out and counted.
        "stream": {"name": "instruction", "tasks": tasks, "on_fault": "skip", **limits},
        "models": {"llm": {"name": "llava", **parts}},
        "method": {**method, "tuning": SETTINGS},
        "evaluate": {"batch_size": 50, **({"plan": "last"} if name == "multitask" else {})},
        # Some of ScienceQA's questions are longer than what this Llama has read: 512 tokens.
        "run": {"out": str(given.work / "runs"), "name": name + given.label, "unreadable": "skip"},
    }


def method_table(rows: list[dict[str, Any]]) -> list[str]:
    """Accuracy of the scored tasks and format errors of all, mean and sample standard deviation over seeds."""
    heads = ("MFT", "MFN", "MAA", "BWT", "format errors learned", "format errors final")
    lines = ["| method | n | " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) + 1)]
    for name in _names(rows):
        seeds = sorted({r["seed"] for r in rows if r["run"] == name})
        numbers = [summary([r for r in rows if r["run"] == name and r["seed"] == s]) for s in seeds]
        if numbers:
            said = [_told([n[head] for n in numbers]) for head in heads]
            lines.append(f"| {name} | {len(seeds)} | " + " | ".join(said) + " |")
    return lines


def summary(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """A run's numbers; MAA is the mean over stages of the mean over scored tasks learned so far."""
    value = {(r["metric"], r["after"], r["task"]): r["value"] for r in rows}
    names, last = list(TASKS), len(TASKS) - 1

    def mean(metric: str, tasks: tuple[str, ...], after: int | None) -> float | None:
        places = [(metric, names.index(t) if after is None else after, t) for t in tasks]
        return float(np.mean([value[p] for p in places])) if all(p in value for p in places) else None

    learned, final = (mean("answer_accuracy", SCORED, after) for after in (None, last))
    stages = [mean("answer_accuracy", SCORED[: i + 1], i) for i in range(len(names))]
    known = [stage for stage in stages if stage is not None]
    return {
        "MFT": learned,
        "MFN": final,
        "MAA": float(np.mean(known)) if len(known) == len(stages) else None,
        "BWT": final - learned if final is not None and learned is not None else None,
        "format errors learned": mean("format_errors", tuple(TASKS), None),
        "format errors final": mean("format_errors", tuple(TASKS), last),
    }


def task_table(rows: list[dict[str, Any]], packs: Path, runs: Path) -> list[str]:
    """Each task's accuracy when learned and at the end, and its format errors, beside answers that see nothing."""
    lines = ["| method | | " + " | ".join(TASKS) + " |", "|---|---|" + "---:|" * len(TASKS)]
    for head, by_start in (("one answer to all", False), ("one answer to a first word", True)):
        said = [f"{blind(packs, runs, name, by_start):.0f}" if name in SCORED else "0" for name in TASKS]
        lines.append(f"| {head} | | " + " | ".join(said) + " |")
    last = len(TASKS) - 1
    for method in _names(rows):
        for metric, head in (("answer_accuracy", "accuracy"), ("format_errors", "format errors")):
            for when in ("learned", "end"):
                said = []
                for i, task in enumerate(TASKS):
                    after = last if when == "end" else i
                    place = {"run": method, "task": task, "metric": metric, "after": after}
                    said.append(_told([r["value"] for r in rows if all(r[k] == v for k, v in place.items())]))
                if "-" not in said:
                    lines.append(f"| {method} | {head}, {when} | " + " | ".join(said) + " |")
    return lines


def blind(packs: Path, runs: Path, name: str, by_start: bool) -> float:
    """Percent right, on the questions of a run, of the answer that is right most often in the training file.

    `by_start`: of the answer that is right most often after the question's first word.
    """
    scorer, i = TASKS[name][0], list(TASKS).index(name)
    file = next(iter(sorted(runs.glob(f"*/seed_*/predictions/{len(TASKS) - 1}_{i}.jsonl"))))
    asked = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    answers: dict[str, list[str]] = defaultdict(list)
    for record in json.loads((packs / name / "train.json").read_text("utf-8")):
        question, answer = (message["value"] for message in record["conversations"])
        answers[_start(question, by_start)].append(answer)
    best = {start: _best(given, scorer) for start, given in answers.items()}
    said = [{**row, "prediction": best.get(_start(row["question"], by_start), "")} for row in asked]
    return 100 * float(np.mean(record_values(said, scorer)))


def _start(question: str, by_start: bool) -> str:
    return question.replace("<image>", "").split()[0] if by_start else ""


def _best(answers: list[str], scorer: str) -> str:
    """The commonest; of boxes the one that most others overlap."""
    if scorer != "grounding":
        return Counter(answers).most_common(1)[0][0]
    targets = [{"box": box, "size": [1, 1]} for box in answers]

    def hits(box: str) -> float:
        return sum(record_values([{"prediction": box, "target": target} for target in targets], scorer))

    return max(answers, key=hits)


def _names(rows: list[dict[str, Any]]) -> list[str]:
    """Of runs: the methods, then those with a label."""
    return [*METHODS, *sorted({r["run"] for r in rows} - set(METHODS))]


def _told(values: list[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known or len(known) < len(values):
        return "-"
    return f"{np.mean(known):.1f}" + (f" ± {np.std(known, ddof=1):.1f}" if len(known) > 1 else "")


if __name__ == "__main__":
    main()
