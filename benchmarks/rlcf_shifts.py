"""Test-time adaptation on shifted images: zero-shot, TPT, RLCF and the reward model alone, set by set, over seeds.

    python benchmarks/rlcf_shifts.py microworld --out benchmarks/results/rlcf_microworld.csv
    python benchmarks/rlcf_shifts.py microworld --choose --seeds 0 --limit 30 --out rates.csv
    python benchmarks/rlcf_shifts.py pacs --pacs DIR --split W
    python benchmarks/rlcf_shifts.py pacs --pacs DIR --split W --policy small_clip_a --reward small_clip_b \\
        --out benchmarks/results/rlcf_pacs.csv

`microworld`: ten styles at severity 5, embedded micro-clip and micro-clip-reward. `pacs`: DIR holds ``photo``,
``art_painting``, ``cartoon`` and ``sketch`` with a folder a class. ``--split W`` makes folders of links: W/train/photo
and W/train/all to train small CLIPs on (by pretrain_small_clip.py), W/test/<domain> to test on: a quarter of the
photos, half of the others. A seed draws other test images (where --limit leaves a choice), other views and samples.
``--choose`` tries learning rates on other pictures than those that are reported: another seed of microworld, the
training photos of PACS. Runs are kept in --work, and go on where they stopped.

The CSV has a line for each (set, method, seed): accuracy in percent; how many answers are right where the policy's were
wrong (`better`) and the other way round (`worse`); the same two counts for the reward model alone (`reward_knows`,
`reward_misleads`). Knows recipes by name. Does not know any method's inside.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from perdure import api, recipe
from perdure.evaluate import read_records

METHODS = ("tpt_prompt", "rlcf_prompt", "rlcf_encoder")
VIEWS = {"views": 32, "selection": 0.2}
"""Of all methods, unless they state others."""
RATES = {"prompt": (2e-3, 7e-3, 2e-2), "encoder": (3e-5, 1e-4, 3e-4, 1e-3)}
STYLES = ("plain", "sketch", "inverted", "noise", "blur", "pixelated", "contrast", "textured", "rotated", "tinted")
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("microworld", "pacs"))
    parser.add_argument(
        "--methods", nargs="*", default=METHODS, help="each may have settings: rlcf_encoder:lr=1e-4,steps=5"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--limit", type=int, default=300, help="images of a set")
    parser.add_argument("--choose", action="store_true", help="try learning rates on pictures that are not reported")
    parser.add_argument("--pacs", type=Path, help="folder of the four domains")
    parser.add_argument("--split", type=Path, help="folder for links to training and test images")
    parser.add_argument("--policy", default="micro-clip")
    parser.add_argument("--reward", default="micro-clip-reward")
    parser.add_argument("--work", type=Path, default=Path("runs/rlcf_shifts"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="CSV; a table is printed, too")
    given = parser.parse_args()
    if given.split and given.pacs:
        split_domains(given.pacs, given.split)
    if given.out is None:
        return
    rows = []
    for job in jobs(given):
        rows += measured(job, given)
        write(rows, given.out)
    print(table(rows))


def jobs(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each run as a mapping: its label, method, settings and seed."""
    for seed in given.seeds:
        for label in ("policy", "reward"):
            yield {"label": label, "method": "zero_shot", "seed": seed, "settings": {}}
        for text in given.methods:
            method, _, stated = text.partition(":")
            settings = VIEWS | {
                k: json.loads(v) for k, _, v in (part.partition("=") for part in stated.split(",") if part)
            }
            rates: Sequence[float] = RATES["prompt" if "prompt" in method else "encoder"] if given.choose else ()
            for rate in rates or (None,):
                more = {} if rate is None else {"lr": rate}
                label = text.replace(":", "-").replace(",", "+") + ("" if rate is None else f"-lr={rate:g}")
                yield {"label": label, "method": method, "seed": seed, "settings": settings | more}


def measured(job: Mapping[str, Any], given: argparse.Namespace) -> list[dict[str, Any]]:
    """One run, one row a set."""
    folder = run(job, given)
    scores = json.loads((folder / "scores.json").read_text())
    rows = []
    for index, name in enumerate(scores["tasks"]):
        (values,) = [r for r in scores["rows"] if r["after"] == r["asked"] == index]
        row = {"set": name, "method": job["label"], "seed": job["seed"], "n": values["n"]}
        row["accuracy"] = round(values["values"]["accuracy"], 3)
        records = [read_records(f / f"predictions/{index}_{index}.jsonl") for f in (folder, *siblings(job, given))]
        right = [[r["predicted"] == r["target"] for r in part] for part in records]
        row["better"] = sum(now and not was for now, was in zip(right[0], right[1]))
        row["worse"] = sum(was and not now for now, was in zip(right[0], right[1]))
        if len(right) == 3:
            row["reward_knows"] = sum(reward and not was for was, reward in zip(right[1], right[2]))
            row["reward_misleads"] = sum(was and not reward for was, reward in zip(right[1], right[2]))
        rows.append(row)
    return rows


def siblings(job: Mapping[str, Any], given: argparse.Namespace) -> list[Path]:
    """The runs of the policy and of the reward model alone, on the same images."""
    pair = [given.work / given.what / label / f"seed_{job['seed']}" for label in ("policy", "reward")]
    return pair[:1] if job["label"] == "policy" else pair


def run(job: Mapping[str, Any], given: argparse.Namespace) -> Path:
    """The folder of a finished run."""
    seed, out = job["seed"], given.work / given.what
    reward = {"reward": {"name": "clip", "weights": given.reward}}
    policy = {"policy": {"name": "clip", "weights": given.reward if job["label"] == "reward" else given.policy}}
    needs_reward = job["method"] in ("kd", "rlcf_prompt", "rlcf_encoder")
    tree = {
        "stream": {"name": "shifted_tests", "limit": given.limit, "order_seed": seed, **sets(given)},
        "models": policy | (reward if needs_reward else {}),
        "method": {"name": job["method"], **job["settings"]},
        "evaluate": {"plan": "current", "batch_size": 16},
        "run": {"name": job["label"], "out": str(out), "device": "cpu", "seeds": [seed]},
    }
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{job['label']}.yaml"
    file.write_text(json.dumps(tree))  # JSON is YAML
    finished = api.execute(recipe.load(file), quiet=True)[0]
    scored = {r["asked"]: r["values"]["accuracy"] for r in finished.scores.rows}
    print(job["label"], seed, *(f"{scored[i]:.1f}" for i in sorted(scored)), flush=True)
    return finished.folder


def sets(given: argparse.Namespace) -> dict[str, Any]:
    """The stream's test sets."""
    if given.what == "microworld":
        world = {"name": "microworld", "train_per_class": 0, "seed": int(given.choose)}
        return {"data": [world | {"style": style, "severity": 5} for style in STYLES]}
    folders = ["train/photo"] if given.choose else [f"test/{domain}" for domain in DOMAINS]
    data = [{"name": "image_folder", "root": str(given.split / folder), "test_share": 1} for folder in folders]
    return {"data": data, "names": [folder.split("/")[1] for folder in folders]}


def split_domains(pacs: Path, out: Path) -> None:
    """Every fourth photo of a class is for testing, and every second image of the other domains."""
    for domain in DOMAINS:
        every = 4 if domain == "photo" else 2
        for folder in sorted(path for path in (pacs / domain).iterdir() if path.is_dir()):
            for i, image in enumerate(sorted(folder.iterdir())):
                test = i % every == every - 1
                links = [f"test/{domain}"] if test else ["train/all", *(["train/photo"] if domain == "photo" else [])]
                for where in links:
                    _link(image, out / where / folder.name / f"{domain}_{image.name}")


def _link(image: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(image.resolve())


def write(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    fields = ["set", "method", "seed", "n", "accuracy", "better", "worse", "reward_knows", "reward_misleads"]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, fields)
        writer.writeheader()
        writer.writerows(rows)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: sets down, methods across, mean ± standard deviation over seeds; then the mean over sets."""
    methods, names = (list(dict.fromkeys(r[key] for r in rows)) for key in ("method", "set"))
    cells: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for r in rows:
        cells[r["set"], r["method"]][r["seed"]] = r["accuracy"]
    for method in methods:
        for seed in cells[names[0], method]:
            cells["mean", method][seed] = mean(cells[name, method][seed] for name in names)
            cells["mean less policy", method][seed] = cells["mean", method][seed] - cells["mean", "policy"][seed]
    lines = ["| set | " + " | ".join(methods) + " |", "|---|" + "---:|" * len(methods)]
    for name in (*names, "mean", "mean less policy"):
        values = [list(cells[name, method].values()) for method in methods]
        shown = [f"{mean(v):.1f}" + (f" ± {stdev(v):.1f}" if len(v) > 1 else "") for v in values]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
