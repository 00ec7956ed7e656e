"""Test-time adaptation over streams: plain schedules against ours in one run, and all methods in one table.

    python benchmarks/test_time.py schedules --out benchmarks/results/test_time.json
    python benchmarks/test_time.py microworld --out benchmarks/results/test_time_microworld.csv
    python benchmarks/test_time.py pacs --data W/test --clean W/train/photo \\
        --policy small_clip_a --reward small_clip_b --out benchmarks/results/test_time_pacs.csv

`schedules`: each method's loop as its paper says it, image by image, and ours, on the same features in one process;
the answers must agree. `microworld`, `pacs`: zero-shot, the reward model alone and every method, over as many orders as
there are seeds, with one setting for all test sets; a line for each (set, method, seed) with accuracy, ECE and CPU
milliseconds an image. W and the small CLIPs are those of `rlcf_shifts.py`. Runs are kept in --work, and go on where
they stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from perdure import api, recipe
from perdure.families.test_time import adapting, evidence, norms
from perdure.families.test_time.losses import entropy
from perdure.methods import adapt, tda, tent
from perdure.models import clip

STYLES = ("plain", "sketch", "inverted", "noise", "blur", "pixelated", "contrast", "textured", "rotated", "tinted")
SEVERITY = 5
"""That of the premises R1 to R4 (docs/worlds.md)."""
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
VIEWS = {"views": 32}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero-shot": ("zero_shot", {}),
    "reward alone": ("zero_shot", {}),
    "tda": ("tda", {}),
    "adapt": ("adapt", {}),
    "adapt, transductive": ("adapt", {"mode": "transductive"}),
    "zero": ("zero", VIEWS),
    "zero, reward votes": ("zero", VIEWS),
    "dynaprompt": ("dynaprompt", VIEWS | {"selection": 0.2}),
    "tent": ("tent", {}),
    "eta": ("eata", {"fisher_alpha": 0}),
    "eata": ("eata", {}),
    "sar": ("sar", {}),
    "cotta": ("cotta", {"augmentations": 8}),
    "tent, batches of 8": ("tent", {"batch_size": 8, "optimizer": "adam"}),
    "eta, batches of 8": ("eata", {"fisher_alpha": 0, "batch_size": 8, "optimizer": "adam", "d_margin": 0.4}),
    "sar, batches of 8": ("sar", {"batch_size": 8, "optimizer": "adam"}),
    "tent, continual": ("tent", {"continual": True}),
    "sar, continual": ("sar", {"continual": True}),
    "cotta, continual": ("cotta", {"augmentations": 8, "continual": True}),
}
"""Label -> method and settings; all else is the method's default."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("schedules", "microworld", "pacs"))
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--limit", type=int, default=100, help="images of a set")
    parser.add_argument("--first", type=int, help="so many test sets alone")
    parser.add_argument("--data", type=Path, help="folder of the four domains' test images")
    parser.add_argument("--clean", type=Path, help="folder of clean training images, for EATA's anchor")
    parser.add_argument("--policy", default="micro-clip")
    parser.add_argument("--reward", default="micro-clip-reward")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--work", type=Path, default=Path("runs/test_time"), help="folder of the runs")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "schedules":
        rows = schedules(given.classes, given.images)
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
        for row in rows:
            print(row)
        return
    run("zero-shot", 1000, given)  # what a process does once is not a method's time
    rows = [row for seed in given.seeds for label in given.rows for row in measured(label, seed, given)]
    write(rows, given.out)
    print(table(rows))


# -- all methods --------------------------------------------------------------------------------------------


def measured(label: str, seed: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """One run, a row a test set."""
    folder = run(label, seed, given)
    scores = json.loads((folder / "scores.json").read_text())
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    seconds = {event["asked"]: event["cpu_seconds"] for event in events if event["event"] == "test"}
    rows = []
    for row in scores["rows"]:
        values = row["values"]
        found = {"set": scores["tasks"][row["asked"]], "method": label, "seed": seed, "n": row["n"]}
        found |= {
            name: round(values[name], 3) for name in ("accuracy", "ece", "nll", "auroc_wrong") if values.get(name)
        }
        rows.append(found | {"ms": round(1000 * seconds[row["asked"]] / row["n"], 2)})
    return rows


def run(label: str, seed: int, given: argparse.Namespace) -> Path:
    """The folder of a finished run."""
    method, settings = ROWS[label]
    reward = label == "reward alone"
    roles = {"policy" if method == "zero_shot" else "clip": given.reward if reward else given.policy}
    roles |= {"reward": given.reward} if "votes" in label else {}
    tree = {
        "stream": {
            "name": "shifted_tests",
            "limit": given.limit,
            "order_seed": 0,
            **sets(given, anchor=label == "eata"),
        },
        "models": {role: {"name": "clip", "weights": weights} for role, weights in roles.items()},
        "method": {"name": method, **settings},
        "evaluate": {"plan": "current", "order": "shuffled", "metrics": ["ece", "nll", "auroc_wrong"]},
        "run": {
            "name": label.replace(", ", "-").replace(" ", "_"),
            "out": str(given.work / given.what),
            "device": "cpu",
        },
    }
    tree["run"]["seeds"] = [seed]
    finished = api.execute(recipe.load(tree), quiet=True)[0]
    accuracy = [row["values"]["accuracy"] for row in finished.scores.rows]
    print(label, seed, f"{mean(accuracy):.2f}", flush=True)
    return finished.folder


def sets(given: argparse.Namespace, *, anchor: bool) -> dict[str, Any]:
    """The stream's test sets, and clean images for EATA's anchor."""
    world = {"name": "microworld", "train_per_class": 0}
    if given.what == "microworld":
        clean = {"clean": {"name": "microworld", "style": "plain", "train_per_class": 20}} if anchor else {}
        data = [world | {"style": style, "severity": SEVERITY} for style in STYLES[: given.first]]
        return {"data": data, **clean}
    folder = {"name": "image_folder", "test_share": 1}
    data = [folder | {"root": str(given.data / domain)} for domain in DOMAINS[: given.first]]
    clean = {"clean": {"name": "image_folder", "root": str(given.clean), "test_share": 0}} if anchor else {}
    return {"data": data, "names": list(DOMAINS[: given.first]), **clean}


def write(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, ["set", "method", "seed", "n", "accuracy", "ece", "nll", "auroc_wrong", "ms"])
        writer.writeheader()
        writer.writerows(rows)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line a method: mean over sets of accuracy, ECE and AUROC with their spread over orders, and time."""
    lines = [
        "| method | accuracy | less zero-shot | ECE | AUROC of wrong | CPU ms an image |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    by: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for name in ("accuracy", "ece", "auroc_wrong", "ms"):
            if row.get(name) not in (None, ""):
                by[row["method"], name][row["seed"]].append(float(row[name]))
    means = {key: {seed: mean(values) for seed, values in seeds.items()} for key, seeds in by.items()}
    base = means["zero-shot", "accuracy"]
    for method in dict.fromkeys(row["method"] for row in rows):
        accuracy = means[method, "accuracy"]
        gain = [accuracy[s] - base[s] for s in accuracy]
        cells = [_spread(list(accuracy.values())), _spread(gain, sign="+")]
        cells += [_spread(list(means[method, name].values())) for name in ("ece", "auroc_wrong")]
        lines.append(f"| {method} | {' | '.join(cells)} | {mean(means[method, 'ms'].values()):.1f} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], *, sign: str = "") -> str:
    more = f" ± {stdev(values):.1f}" if len(values) > 1 and stdev(values) > 0 else ""
    return f"{mean(values):{sign}.1f}{more}"


# -- plain schedules against ours ---------------------------------------------------------------------------


def schedules(classes: int, images: int) -> list[dict[str, Any]]:
    """CPU milliseconds an image of each loop, plain and ours, on the same inputs, and how far answers are apart."""
    texts, features = stream(classes, images)
    few = features[: max(images // 40, 30)]
    return [
        compared("tda", plain_tda, our_tda, texts, features),
        compared("adapt", plain_adapt, our_adapt, texts, few),
        compared_tent(),
    ]


def stream(classes: int, images: int, dim: int = 512) -> tuple[Tensor, Tensor]:
    """Unit class features, and image features around them, as close as CLIP's: cosines of about 0.3."""
    generator = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(classes, dim, generator=generator), dim=-1)
    labels = torch.randint(classes, (images,), generator=generator)
    noise = F.normalize(torch.randn(images, dim, generator=generator), dim=-1)
    return texts, F.normalize(0.22 * texts[labels] + noise, dim=-1)


def compared(name: str, plain: Callable[..., Tensor], ours: Callable[..., Tensor], *inputs: Tensor) -> dict[str, Any]:
    """CPU milliseconds of both in turn, twice; the quicker run of each counts."""
    best: dict[str, float] = {}
    answers: dict[str, Tensor] = {}
    for _ in range(2):
        for which, answer in (("plain", plain), ("ours", ours)):
            began = time.process_time()
            answers[which] = answer(*inputs)
            best[which] = min(best.get(which, math.inf), time.process_time() - began)
    images = len(inputs[-1])
    apart = float((answers["plain"] - answers["ours"]).abs().max())
    same = float((answers["plain"].argmax(-1) == answers["ours"].argmax(-1)).float().mean())
    assert same == 1.0, f"{name}: {100 * (1 - same):.2f} % of answers differ"
    row = {"loop": name, "images": images, "classes": len(inputs[0]), "ms_plain": 1000 * best["plain"] / images}
    row |= {"ms_ours": 1000 * best["ours"] / images, "times": best["plain"] / best["ours"], "apart": apart}
    return {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in row.items()}


def our_tda(texts: Tensor, features: Tensor) -> Tensor:
    """In batches of 128, as a run makes them."""
    state = tda.Votes(tda.Config(), len(texts))
    parts = features[:, None].split(128)
    return torch.cat([state.answer(evidence.gather(part, texts, scale=100.0, kept=1)) for part in parts])


def plain_tda(texts: Tensor, features: Tensor) -> Tensor:
    """Image by image, as the paper says it: two caches by class, made into key and value matrices for every image."""
    config, classes = tda.Config(), len(texts)
    positive: dict[int, list[tuple[float, Tensor]]] = {}
    negative: dict[int, list[tuple[float, Tensor, Tensor]]] = {}
    answers = []
    for f in features:
        z = 100 * f @ texts.T
        p, h, k = z.softmax(-1), float(entropy(z)), int(z.argmax())
        _insert(positive, k, (h, f), config.positive_capacity)
        if config.entropy_window[0] < h / math.log2(classes) < config.entropy_window[1]:
            _insert(negative, k, (h, f, p), config.negative_capacity)
        keys = torch.stack([item[1] for c in sorted(positive) for item in positive[c]])
        values = F.one_hot(torch.tensor([c for c in sorted(positive) for _ in positive[c]]), classes).float()
        out = z + config.positive_alpha * (-(config.positive_beta * (1 - f @ keys.T))).exp() @ values
        if negative:
            keys = torch.stack([item[1] for c in sorted(negative) for item in negative[c]])
            shares = torch.stack([item[2] for c in sorted(negative) for item in negative[c]])
            low, high = config.mask_window
            values = ((shares > low) & (shares < high)).float()
            out = out - config.negative_alpha * (-(config.negative_beta * (1 - f @ keys.T))).exp() @ values
        answers.append(out)
    return torch.stack(answers)


def _insert(cache: dict[int, list], k: int, item: tuple, capacity: int) -> None:
    items = cache.setdefault(k, [])
    if len(items) < capacity:
        items.append(item)
    elif item[0] < items[-1][0]:
        items[-1] = item
    items.sort(key=lambda one: one[0])


def our_adapt(texts: Tensor, features: Tensor) -> Tensor:
    config = adapt.Config()
    state = adapt.Gaussian(texts, config.capacity, config.alpha, config.scale)
    return state.answer(evidence.gather(features[:, None], texts, scale=100.0, kept=1))


def plain_adapt(texts: Tensor, features: Tensor) -> Tensor:
    """Image by image, as the paper says it: all differences, their covariance and its pseudoinverse."""
    config, (classes, dim) = adapt.Config(), texts.shape
    banks: dict[int, list[tuple[Tensor, float, float]]] = {}
    means, weight, bias, votes, count = texts.clone(), texts, torch.zeros(classes), torch.zeros(classes), 0
    answers = []
    for f in features:
        z = 100 * f @ texts.T
        p, h, k = z.softmax(-1), float(entropy(z)), int(z.argmax())
        bank = banks.setdefault(k, [])
        entered = len(bank) < config.capacity or h < max(item[2] for item in bank)
        if entered:
            if len(bank) >= config.capacity:
                bank.remove(max(bank, key=lambda item: item[2]))
            bank.append((f, float(p[k]), h))
            own = torch.tensor([item[1] for item in bank])
            kept = torch.stack([item[0] for item in bank])
            means[k] = config.alpha * (own @ kept + p[k] * f) / (own.sum() + p[k]) + (1 - config.alpha) * texts[k]
            keys = torch.cat([torch.stack([item[0] for item in banks[c]]) for c in sorted(banks)])
            labels = torch.tensor([c for c in sorted(banks) for _ in banks[c]])
            own = torch.tensor([item[1] for c in sorted(banks) for item in banks[c]])
            rest, count = keys - means[labels], len(keys)
            covariance = torch.cov(rest.T) if count > 1 else torch.eye(dim)
            precision = dim * torch.linalg.pinv(
                (count - 1) * covariance + covariance.trace() * torch.eye(dim), hermitian=True
            )
            weight = means @ precision
            bias = -math.log(classes) - 0.5 * (weight * means).sum(-1)
            votes = (f @ keys.T) @ (F.one_hot(labels, classes) * own[:, None])
        u = (f @ weight.T + bias).log_softmax(-1) + config.scale / (2 * count) * votes
        answers.append(z * ((u - u.max()) / config.scale).exp())
    return torch.stack(answers)


def compared_tent(batches: int = 6, size: int = 32) -> dict[str, Any]:
    """micro-clip's image tower: an answer and a loss from two passes with all gradients, against one pass with those
    of the norm layers."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batches * size, 3, 64, 64, generator=generator)

    def steps(passes: int, everything: bool) -> Tensor:
        model = clip.load(clip.Config(weights="micro-clip"))
        images_ = F.interpolate(images, model.image_size)
        texts = F.normalize(torch.randn(50, model.dim, generator=torch.Generator().manual_seed(1)), dim=-1)
        tower = model.model.vision_model
        tuned = norms.norm_parameters(tower)
        for parameter in tower.parameters() if everything else tuned.values():
            parameter.requires_grad_()
        weights = adapting.Weights(tuned, adapting.Descent(optimizer="sgd", lr=1e-3))

        def logits(pixels: Tensor) -> Tensor:
            return model.scale.detach() * F.normalize(model.image_features(pixels), dim=-1) @ texts.T

        if passes == 1:
            stepper = tent.Entropy(logits, weights)
            return torch.cat([stepper.answer(part, []) for part in images_.split(size)])
        answers = []
        for part in images_.split(size):
            with torch.no_grad():
                answers.append(logits(part))
            entropy(logits(part)).mean().backward()
            weights.optimizer.step()
            tower.zero_grad(set_to_none=True)
        return torch.cat(answers)

    return compared("tent", lambda _, x: steps(2, True), lambda _, x: steps(1, False), torch.zeros(50, 1), images)


if __name__ == "__main__":
    main()
