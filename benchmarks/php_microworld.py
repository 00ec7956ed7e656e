"""PHP, its ablations and its baselines on microworld's four audio-visual tasks, in two orders.

    perdure data make microworld --as audio-visual --out world_0 train_clips=200 test_clips=100 seed=0
    python benchmarks/php_microworld.py --data world_{seed} --out results.csv --set method.epochs=10
    python benchmarks/php_microworld.py --table results.csv
    python benchmarks/php_microworld.py --data world_{seed} --seeds 0 --chance

Each method is its recipe ``<method>/microworld``; an ablation is ``php/microworld`` with one switch off. The clips are
read by the readers of the real data sets; frames and log-mels are made ready once and kept in memory, which changes no
number. With ``--every 2`` each second second of a clip is left out, of training and tests alike. Joint training is
measured at the end alone, and trains once, on all four tasks. One line a test result; runs that the file holds already
are left out, so that the command can be repeated, and ``--minutes`` ends it early. ``--chance`` prints the score of the
best answer that is the same for every clip of the split.

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
from claims import Claim, means, verdicts

from perdure import metrics, recipe
from perdure.evaluate import Evaluation
from perdure.families.audio_visual.inputs import labels_of, mel_of, preprocess, problem_of
from perdure.loop import run
from perdure.metrics import continual
from perdure.metrics.continual import normalized_mean
from perdure.metrics.masks import read_mask
from perdure.runtime import Runtime
from perdure.settings import registry
from perdure.types import Example, Examples, Stream, Task

METHODS: dict[str, tuple[str, list[str]]] = {
    "php": ("php", []),
    "php without shallow": ("php", ["method.shallow=false"]),
    "php without mid": ("php", ["method.mid=false"]),
    "php without deep": ("php", ["method.deep=false"]),
    "av_finetune": ("av_finetune", []),
    "av_l2p": ("av_l2p", []),
    "av_dualprompt": ("av_dualprompt", []),
    "av_coda_prompt": ("av_coda_prompt", []),
    "av_joint": ("av_joint", []),
    "zero_shot_av": ("zero_shot_av", []),
}
ORDERS = {"first": ["AVE", "LLP", "AVS", "AVQA"], "second": ["AVQA", "AVS", "LLP", "AVE"]}
CLAIMS = [
    Claim("PHP ends above sequential fine-tuning, mean of the tasks", "mean", "php", "av_finetune"),
    Claim("PHP forgets less", "forgetting", "php", "av_finetune"),
    *(
        Claim(f"PHP ends above {name}", "mean", "php", method)
        for method, name in (("av_l2p", "L2P"), ("av_dualprompt", "DualPrompt"), ("av_coda_prompt", "CODA-Prompt"))
    ),
    *(
        Claim(f"Without its {part} it ends lower", "mean", "php", f"php without {name}")
        for name, part in (("shallow", "shallow adapters"), ("mid", "generator"), ("deep", "static prompts"))
    ),
]
COLUMNS = ("method", "order", "seed", "after", "after_task", "asked", "asked_task", "metric", "n", "value", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with AVE, LLP, AVS, AVQA; {seed}: the seed")
    parser.add_argument("--every", type=int, default=1, help="take one of so many seconds of each clip")
    parser.add_argument("--chance", action="store_true", help="print what one answer for all clips would score")
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
        print("\n".join([*table(given.table), "", *claimed(given.table)]))
        return
    began, done = time.monotonic(), _done(given.out)
    ready: dict[str, Example] = {}
    for seed in given.seeds:
        if given.chance:
            print(seed, chance(_thinned(_built("av_finetune", "first", seed, given).stream, given.every), given.split))
            continue
        for order in given.orders:
            for method in given.methods:
                if (method, order, str(seed)) in done:
                    continue
                if time.monotonic() - began > 60 * given.minutes:
                    return
                _append(given.out, _run(method, order, seed, given, ready))


def _run(method: str, order: str, seed: int, given: Any, ready: dict[str, Example]) -> list[dict[str, Any]]:
    built = _built(method, order, seed, given)
    stream = _prepared(_thinned(built.stream, given.every), built.models, ready, given.split)
    runtime = Runtime(seed=seed, device="cpu", quiet=True)
    joint = method == "av_joint"
    evaluation = Evaluation(batch_size=8, split=given.split, save_predictions=False, plan="last" if joint else "seen")
    if joint:
        _train_once(built.method, len(stream.tasks))
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


def _built(method: str, order: str, seed: int, given: Any) -> Any:
    """The recipe of a method with a seed's clips."""
    name, switches = METHODS[method]
    roots = {"ave": "AVE", "llp": "LLP", "avs_s4": "AVS", "music_avqa": "AVQA"}
    base = recipe.load(f"{name}/microworld")
    folder = Path(str(given.data).format(seed=seed))
    data = [{**one, "root": str(folder / roots[one["name"]])} for one in base.stream.settings["data"]]
    tasks = [roots[one["name"]] for one in data]
    asked_order = [task for task in ORDERS[order] if task in tasks]
    stated = [f"stream.data={json.dumps(data, default=str)}", f"stream.order={json.dumps(asked_order)}"]
    stated += [f"stream.seed={seed}"]
    fields = registry.field_docs("methods", name)
    more = [one for one in given.set if not one.startswith("method.") or one[7:].split("=")[0] in fields]
    return recipe.build(recipe.load(f"{name}/microworld", [*stated, *switches, *more]), seed)


def _train_once(method: Any, tasks: int) -> None:
    """Joint training keeps the clips of all tasks but the last, and trains when they are all there."""
    learn = method.learn

    def waiting(task: Task, runtime: Runtime) -> None:
        if task.index == tasks - 1:
            learn(task, runtime)
        else:
            method.problems[task.name], method.examples[task.name] = problem_of(task), list(task.train)

    method.learn = waiting


def _thinned(stream: Stream, every: int) -> Stream:
    """One of so many seconds of each clip, with its truth."""
    if every == 1:
        return stream
    tasks = []
    for task in stream:
        seconds = range(0, task.facts["segments"], every)

        def thin(example: Example, seconds: range = seconds, kind: str = task.kind) -> Example:
            target = example.target
            if kind in ("localize-events", "segment"):
                target = [target[second] for second in seconds if second < len(target)]
            elif kind == "parse-video":
                runs = {m: [_fewer(run, every) for run in target[m]] for m in ("audio", "visual") if m in target}
                target = {**target, **{m: [run for run in found if run[1] < run[2]] for m, found in runs.items()}}
            return replace(example, target=target, inputs={**example.inputs, "seconds": list(seconds)})

        parts = {part: [thin(example) for example in getattr(task, part)] for part in ("train", "validation", "test")}
        examples = {part: Examples.of(listed) for part, listed in parts.items()}
        tasks.append(replace(task, facts={**task.facts, "segments": len(seconds)}, **examples))
    return replace(stream, tasks=tuple(tasks))


def _fewer(run: list[int], every: int) -> list[int]:
    """Of ``[class, from, to)`` the same among one of so many seconds: those that divide by `every`."""
    label, begin, end = run
    return [label, -(-begin // every), -(-end // every)]


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
    seconds = example.inputs.get("seconds", slice(None))
    if key not in ready:
        item = preprocess(replace(example, target=None), size=models["clip"].image_size, training=False)
        batch = {name: item[name][None] for name in ("frames", "wave")}
        mel = mel_of(models["audio"], batch, seconds=task.facts.get("clip_seconds", 10.0))
        pixels = models["clip"].transform.normalize(batch["frames"][0])
        inputs = {"pixels": pixels.numpy()[seconds], "logmel": mel.numpy()[seconds]}
        inputs |= {name: example.inputs[name] for name in ("question",) if name in example.inputs}
        ready[key] = replace(example, inputs=inputs)
    return replace(ready[key], target=example.target)


def chance(stream: Stream, split: str) -> dict[str, float]:
    """By task, the score of the best prediction that is the same for every clip of a split, chosen on that split."""
    found = {}
    for task in stream:
        query, examples = problem_of(task).query(), getattr(task, split)
        truth = [example.target for example in examples]
        labels = [label - task.offset for target in truth for label in labels_of(target, task.kind)]
        often = np.argsort(-np.bincount(labels, minlength=len(task.candidates))) if labels else []
        rows = torch.eye(len(task.candidates))
        answers: list[Any] = []
        match task.kind:
            case "segment":
                masks = torch.stack([read_mask(mask, where=task.name) for target in truth for mask in target])
                share = masks.float().mean(0)
                answers = [(share - t).expand(task.facts["segments"], -1, -1) for t in np.linspace(-0.01, 1.01, 50)]
            case "parse-video":
                for most in range(len(task.candidates) + 1):
                    present = rows[often[:most].copy()].sum(0).expand(task.facts["segments"], -1)
                    answers.append({"scores": present, "audio": present, "visual": present})
            case "localize-events":
                answers = [rows[often[0]].expand(task.facts["segments"], -1)]
            case _:
                answers = [rows[often[0]]]
        scores = []
        for answer in answers:
            repeated = {name: torch.stack([one] * len(truth)) for name, one in _parts(answer).items()}
            predicted = repeated if "scores" in repeated else repeated[""]
            scores.append(metrics.compute("score", metrics.records(task.kind, predicted, examples, query)))
        found[task.name] = round(max(scores), 1)
    return found


def _parts(answer: Any) -> dict[str, torch.Tensor]:
    return answer if isinstance(answer, dict) else {"": answer}


def claimed(file: Path) -> list[str]:
    """Every order's claims, paired over seeds."""
    by_order: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    for (method, order), runs in _matrices(file).items():
        for seed, matrix in runs.items():
            lost = continual.forgetting(matrix)
            numbers = {"mean": float(matrix[-1].mean())} | ({} if lost is None else {"forgetting": lost})
            by_order.setdefault(order, {}).setdefault(method, {})[int(seed)] = numbers
    lines = []
    for order, found in by_order.items():
        lines += [f"Order: {' → '.join(ORDERS[order])}", "", *means(found), "", *verdicts(CLAIMS, found), ""]
    return lines


def _matrices(file: Path) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """(method, order) -> seed -> score after each task on each."""
    cells: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row["metric"] == "score":
                matrix = cells.setdefault((row["method"], row["order"]), {}).setdefault(
                    row["seed"], np.full((4, 4), np.nan)
                )
                matrix[int(row["after"]), int(row["asked"])] = float(row["value"])
    sizes = {key: int((~np.isnan(next(iter(runs.values())))).any(0).sum()) for key, runs in cells.items()}
    return {key: {seed: m[: sizes[key], : sizes[key]] for seed, m in runs.items()} for key, runs in cells.items()}


def table(file: Path) -> list[str]:
    """Mean and standard deviation over seeds of what is left after the last task, in Markdown."""
    cells = _matrices(file)
    text = ["| method | order | n | AVE | LLP | AVS | AVQA | mean ↑ | normalized mean ↑ | forgetting ↓ |"]
    text.append("|---" * 10 + "|")
    for order, names in ORDERS.items():
        for method in METHODS:
            runs = list(cells.get((method, order), {}).values())
            if not runs:
                continue
            tasks = [n for n in names if len(runs[0]) == 4 or n in ("AVE", "LLP")]
            last = {n: [m[-1, i] for m in runs] for i, n in enumerate(tasks)}
            columns = [last.get(n) for n in ("AVE", "LLP", "AVS", "AVQA")]
            columns.append([m[-1].mean() for m in runs])
            whole = not np.isnan(np.diagonal(runs[0])).any()  # joint training is measured at the end alone
            columns.append([normalized_mean(m.tolist()) for m in runs] if whole else None)
            columns.append([continual.forgetting(m) for m in runs] if whole else None)
            text.append(f"| {method} | {' → '.join(tasks)} | {len(runs)} | " + " | ".join(map(_shown, columns)) + " |")
    return text


def _shown(values: Any) -> str:
    if values is None:
        return ""
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def _done(file: Path | None) -> set[tuple[str, str, str]]:
    if file is None or not file.is_file():
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
