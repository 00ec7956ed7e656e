"""What the papers claim, put to the test on the embedded worlds: paired over seeds, with what the design could find.

    python benchmarks/claims.py classes --out benchmarks/results/claims_classes.csv
    python benchmarks/claims.py shifts --seeds 0 1 2 3 4 --limit 100 --out benchmarks/results/claims_shifts.csv
    python benchmarks/claims.py instruction --seeds 0 1 2 --out benchmarks/results/claims_instruction.csv
    python benchmarks/claims.py replay --out benchmarks/results/claims_replay.csv
    python benchmarks/claims.py mnist --seeds 0 1 2 --set stream.data.root=DIR --out benchmarks/results/claims_mnist.csv
    python benchmarks/claims.py classes --table benchmarks/results/claims_classes.csv

A seed is another draw of pictures and of all that a method draws. `classes`: the class stream of docs/worlds.md, with a
set that is never taught (`evaluate.retention`). `shifts`: nine shifted looks, means over sets. `instruction`: eight
instruction tasks, by `sefe_microworld`. `replay`: scikit-learn's digits, two a task, and one gated convolutional
network, whose gates only Dynamos uses; a seed is another start and order of the same images. `mnist`: the same on all
of MNIST, with 500 slots. Runs are kept in --work, and go on where they stopped. The CSV has a line for each (way, seed,
number). Knows recipes by name; does not know any method's inside.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import sefe_microworld
from scipy import stats

import perdure
from perdure.reporting import load, tables

KEPT = "evaluate.retention=[{name: microworld, content: colored_shapes, test_per_class: 25, train_per_class: 0}]"
HEAD = ("method.trains=head", "method.epochs=20", "method.head_lr=0.01")
REPLAYED = ("method.buffer_size=200", "method.minibatch_size=16")
VOTE = 64
"""MG-CLIP's `visual_weight`: among 4, 16, 64 and 256 the best average accuracy on validation pictures of world 100
(76.4, 80.1, 82.6, 81.9)."""
WAYS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "classes": {
        "zero-shot": ("continual_clip/microworld", (KEPT,)),
        "prototype": ("prototype/microworld", ()),
        "finetune": ("finetune/microworld", (KEPT,)),
        "lwf": ("lwf/microworld", (KEPT,)),
        "rapf": ("rapf/microworld", (KEPT,)),
        "mg_clip": ("mg_clip/microworld", (KEPT,)),
        "mg_clip, ten epochs": ("mg_clip/microworld", ("method.epochs=10", KEPT)),
        "mg_clip, texts alone": ("mg_clip/microworld", ("method.visual=false", KEPT)),
        "mg_clip, images alone": ("mg_clip/microworld", ("method.text_weight=0", KEPT)),
        "mg_clip, vote chosen": ("mg_clip/microworld", (f"method.visual_weight={VOTE}", KEPT)),
        "ranpac": ("ranpac/microworld", ()),
        "rail": ("rail/microworld", (KEPT,)),
        "bofa": ("bofa/microworld", (KEPT,)),
        "wise_ft": ("wise_ft/microworld", (KEPT,)),
        "magmax": ("magmax/microworld", (KEPT,)),
        "joint": ("joint/microworld", (KEPT,)),
    },
    "vit": {
        "prototype": ("prototype/microworld_vit", ()),
        "ranpac": ("ranpac/microworld", ("models.clip=null", "models.vit={name: vit, weights: micro-vit}")),
        "finetune": ("finetune/microworld_vit", ()),
        "lwf": ("lwf/microworld_vit", ()),
        "joint": ("joint/microworld_vit", ()),
        "finetune, own rows of a head": ("finetune/microworld_vit", (*HEAD, "method.loss=local")),
        "joint, head": ("joint/microworld_vit", HEAD),
        "l2p": ("l2p/microworld", ()),
        "l2p_prefix": ("l2p_prefix/microworld", ()),
        "dualprompt": ("dualprompt/microworld", ()),
        "dualprompt_coda": ("dualprompt_coda/microworld", ()),
        "coda_prompt": ("coda_prompt/microworld", ()),
    },
    "shifts": {
        "zero-shot": ("zero_shot/microworld", ()),
        "reward alone": ("zero_shot/microworld", ("models.policy.weights=micro-clip-reward",)),
        "tpt_prompt": ("tpt_prompt/microworld", ()),
        "tpt_encoder": ("tpt_encoder/microworld", ()),
        "kd": ("kd/microworld", ()),
        "rlcf_prompt": ("rlcf_prompt/microworld", ()),
        "rlcf_encoder": ("rlcf_encoder/microworld", ()),
    },
    "instruction": {name: (recipe, ()) for name, recipe in sefe_microworld.METHODS.items()},
    "replay": {
        "sgd": ("sgd/digits", ()),
        "er": ("er/digits", REPLAYED),
        "derpp": ("derpp/digits", REPLAYED),
        "cls_er": ("cls_er/digits", REPLAYED),
        "dynamos": ("dynamos/digits", REPLAYED),
        "joint": ("joint_net/digits", ()),
    },
    "mnist": {name: (f"{name}/seq_mnist_500", ()) for name in ("er", "derpp", "cls_er", "dynamos")},
}


@dataclass(frozen=True)
class Claim:
    """A number of the way `a` is above that of `b` (for those of `FEWER`: below)."""

    text: str
    number: str
    a: str
    b: str


REPLAY = [
    Claim("Dynamos ends above ER", "last", "dynamos", "er"),
    Claim("above DER++", "last", "dynamos", "derpp"),
    Claim("above CLS-ER", "last", "dynamos", "cls_er"),
    Claim("with fewer active channels in gated layers (of 100)", "active", "dynamos", "er"),
    Claim("and fewer multiply-adds (of 100 of the network without gates)", "multiply-adds", "dynamos", "er"),
]
CLAIMS = {
    "classes": [
        Claim("MG-CLIP improves on the frozen model, on average", "average", "mg_clip", "zero-shot"),
        Claim("and at the end", "last", "mg_clip", "zero-shot"),
        Claim("on RAPF", "last", "mg_clip", "rapf"),
        Claim("on fine-tuning", "last", "mg_clip", "finetune"),
        Claim("Stopping by the gap is better than ten epochs", "last", "mg_clip", "mg_clip, ten epochs"),
        Claim("and keeps more of what is not taught", "lost", "mg_clip", "mg_clip, ten epochs"),
        Claim("The classifier in image space helps", "last", "mg_clip", "mg_clip, texts alone"),
        Claim(
            "Its weight in the vote, chosen on validation pictures, helps", "last", "mg_clip, vote chosen", "mg_clip"
        ),
        Claim("MG-CLIP with that weight improves on the frozen model", "last", "mg_clip, vote chosen", "zero-shot"),
        Claim("on class means of the frozen model", "last", "mg_clip, vote chosen", "prototype"),
        Claim("What is not taught is kept better than by fine-tuning", "lost", "mg_clip", "finetune"),
        Claim("MG-CLIP forgets less than RAPF", "forgetting", "mg_clip", "rapf"),
    ],
    "vit": [
        Claim("RanPAC improves on class means", "last", "ranpac", "prototype"),
        Claim("CODA-Prompt improves on fine-tuning", "last", "coda_prompt", "finetune"),
        Claim("on class means", "last", "coda_prompt", "prototype"),
        Claim("on L2P", "last", "coda_prompt", "l2p"),
        Claim("on DualPrompt", "last", "coda_prompt", "dualprompt"),
        Claim("LwF forgets less than fine-tuning", "forgetting", "lwf", "finetune"),
    ],
    "shifts": [
        Claim("RLCF, image encoder, improves on the policy", "mean", "rlcf_encoder", "zero-shot"),
        Claim("on TPT of the encoder", "mean", "rlcf_encoder", "tpt_encoder"),
        Claim("on distilling the reward model", "mean", "rlcf_encoder", "kd"),
        Claim("RLCF, prompt, improves on the policy", "mean", "rlcf_prompt", "zero-shot"),
        Claim("on TPT", "mean", "rlcf_prompt", "tpt_prompt"),
        Claim("TPT improves on the policy", "mean", "tpt_prompt", "zero-shot"),
    ],
    "instruction": [
        Claim("ASD holds superficial forgetting down", "lost superficially", "lora_asd", "lora"),
        Claim("beside RegLoRA too", "lost superficially", "sefe", "lora_reglora"),
        Claim("ASD leaves fewer format errors", "errors final", "lora_asd", "lora"),
        Claim("RegLoRA holds essential forgetting down", "lost essentially", "lora_reglora", "lora"),
        Claim("beside ASD too", "lost essentially", "sefe", "lora_asd"),
        Claim("RegLoRA adds to ASD, at the end", "MFN", "sefe", "lora_asd"),
        Claim("SEFE improves on LoRA, at the end", "MFN", "sefe", "lora"),
        Claim("on average", "MAA", "sefe", "lora"),
        Claim("and forgets less", "BWT", "sefe", "lora"),
    ],
    "replay": REPLAY,
    "mnist": REPLAY,
}
FEWER = (
    *("lost", "forgetting", "lost superficially", "lost essentially", "errors learned", "errors final"),
    *("active", "multiply-adds"),
)
"""Numbers of which less is better."""
KNOWN = tables.Number(tables.TASK_KNOWN, "last")
Table = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Way -> seed -> number -> value."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=sorted(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--ways", nargs="+", help="these alone")
    parser.add_argument("--limit", type=int, default=100, help="images of a shifted set")
    parser.add_argument("--severity", type=int, default=5, help="of the shifts")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of all runs")
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="folder of the runs")
    parser.add_argument("--table", type=Path, help="print the tables of a CSV that is there; run nothing")
    parser.add_argument("--out", type=Path, help="CSV")
    given = parser.parse_args()
    if given.table is None:
        rows: list[dict[str, object]] = []
        for seed in given.seeds:
            for way in given.ways or WAYS[given.what]:
                found = numbers(given, way, seed)
                print(seed, way, *(f"{name} {value:.1f}" for name, value in found.items()), flush=True)
                rows += [{"way": way, "seed": seed, "number": n, "value": round(v, 3)} for n, v in found.items()]
                if given.out:
                    write(rows, given.out)
    if file := given.table or given.out:
        print("\n".join([*means(read(file)), "", *verdicts(CLAIMS[given.what], read(file))]))


def numbers(given: argparse.Namespace, way: str, seed: int) -> dict[str, float]:
    """What a finished run came to; it is run if it is not there."""
    recipe, settings = WAYS[given.what][way]
    if given.what == "instruction":
        return sefe_microworld.numbers(way, seed, given.work / given.what)
    name = way.replace(", ", "-").replace(" ", "_")
    changes = [*settings, f"run.out={given.work / given.what}", f"run.name={name}_{seed}", f"run.seeds=[{seed}]"]
    changes += [*WORLDS[given.what](given, seed), *given.set]
    folder = Path(perdure.run(recipe, changes, quiet=True).folder)
    found = tables.run_numbers(load.read(folder))
    short = {"average": "average", "last": "last", "forgetting": "forgetting", "over_sets": "mean"}
    short |= {"when_learned": "when learned", "kept": "kept", "lost": "lost"}
    wanted = ("accuracy", "microworld-colored_shapes")
    scores = {short[n.aggregate]: v for n, v in found.items() if n.aggregate in short and n.metric in wanted}
    scores |= {f"{n.aggregate}, task known": v for n, v in found.items() if n == KNOWN}
    return scores | (work(folder) if given.what in ("replay", "mnist") else {})


def classes(given: argparse.Namespace, seed: int) -> list[str]:
    return [f"stream.data.seed={seed}"]


def vit(given: argparse.Namespace, seed: int) -> list[str]:
    return [*classes(given, seed), f"evaluate.metrics=accuracy,{tables.TASK_KNOWN}"]


def shifts(given: argparse.Namespace, seed: int) -> list[str]:
    looks = ("sketch", "inverted", "noise", "blur", "pixelated", "contrast", "textured", "rotated", "tinted")
    data = [
        f"{{name: microworld, train_per_class: 0, style: {look}, severity: {given.severity}, seed: {seed}}}"
        for look in looks
    ]
    return [f"stream.data=[{', '.join(data)}]", f"stream.limit={given.limit}"]


def replay(given: argparse.Namespace, seed: int) -> list[str]:
    """One network and one schedule for all: those of `dynamos/digits`, whose epochs were chosen for Dynamos."""
    schedule = ["method.epochs=10", "method.batch_size=16"]
    return [*schedule, "models.net={name: gated_resnet, width: 16}"]


def mnist(given: argparse.Namespace, seed: int) -> list[str]:
    """Dynamos' network and its tests for all; all else is each recipe's own: the settings published for 500 slots."""
    return ["models.net={name: gated_resnet}", "evaluate.plan=seen", "evaluate.start=false"]


WORLDS = {"classes": classes, "vit": vit, "shifts": shifts, "replay": replay, "mnist": mnist}
"""What settings make a seed's world."""


def work(folder: Path) -> dict[str, float]:
    """Percent of the gated channels, and of the multiply-adds, that an image needs: all where no gate is used.
    Over the images in the replay buffer at the end, as the card says."""
    found = json.loads((folder / "card.json").read_text())["facts"].get("modularity")
    if not found:
        return {"active": 100.0, "multiply-adds": 100.0}
    share = found["multiply_accumulates"] / found["multiply_accumulates_plain"]
    return {"active": 100 * statistics.mean(found["keep_ratio"]), "multiply-adds": 100 * share}


def write(rows: Sequence[Mapping[str, object]], file: Path) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, ["way", "seed", "number", "value"])
        writer.writeheader()
        writer.writerows(rows)


def read(file: Path) -> Table:
    found: dict[str, dict[int, dict[str, float]]] = {}
    with file.open(newline="") as opened:
        for row in csv.DictReader(opened):
            found.setdefault(row["way"], {}).setdefault(int(row["seed"]), {})[row["number"]] = float(row["value"])
    return found


def means(table: Table) -> Iterator[str]:
    """Each way's numbers: mean and half of the 95 % interval."""
    columns = list(dict.fromkeys(name for seeds in table.values() for one in seeds.values() for name in one))
    yield "| way | n | " + " | ".join(columns) + " |"
    yield "|---" * (2 + len(columns)) + "|"
    for way, seeds in table.items():
        cells = []
        for column in columns:
            values = [one[column] for one in seeds.values() if column in one]
            cells.append("–" if not values else f"{statistics.mean(values):.1f} ± {margin(values):.1f}")
        yield f"| {way} | {len(seeds)} | " + " | ".join(cells) + " |"


def verdicts(claims: Sequence[Claim], table: Table) -> Iterator[str]:
    """Each claim: the paired difference, its 95 % interval, the smallest that this design finds in four of five
    studies (Student's t), and what follows."""
    yield "| claim | number | difference | 95 % | could find | here |"
    yield "|---|---|---|---|---|---|"
    for claim in claims:
        left, right = table.get(claim.a, {}), table.get(claim.b, {})
        pairs = [(left[s].get(claim.number), right[s].get(claim.number)) for s in left.keys() & right.keys()]
        sign = -1 if claim.number in FEWER else 1
        apart = [sign * (a - b) for a, b in pairs if a is not None and b is not None]
        if len(apart) < 3:
            yield f"| {claim.text} | {claim.number} | – | – | – | not measured |"
            continue
        mean, half = statistics.mean(apart), margin(apart)
        n = len(apart)
        least = (stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)) * statistics.stdev(apart) / n**0.5
        verdict = "shown" if mean > half else "refuted" if mean < -half else "not shown"
        cells = [f"{mean:+.1f}", f"{mean - half:+.1f} to {mean + half:+.1f}", f"{least:.1f}", verdict]
        yield f"| {claim.text} | {claim.number}, {claim.a} against {claim.b} | " + " | ".join(cells) + " |"


def margin(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean, by Student's t; 0 of one value."""
    if len(values) < 2:
        return 0.0
    return float(stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5)


if __name__ == "__main__":
    main()
