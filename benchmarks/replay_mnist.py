"""Replay on real images: MNIST class by class, MNIST-360 without task boundaries, and a part of Tiny ImageNet.

    python benchmarks/replay_mnist.py --mnist DIR --work runs --seeds 0 1 2 3 4
    python benchmarks/replay_mnist.py --work runs --collect
    python benchmarks/replay_mnist.py --tiny-imagenet DIR --work runs --only tiny --seeds 0 1 2

Runs the shipped recipes (`perdure run er/seq_mnist_200 ...`), each a folder below `--work`, and goes on where it was
stopped. ``--collect`` only writes the table of what is finished: a row a setting, with the published number beside
ours. DIR of Tiny ImageNet holds ``train/<wnid>`` and ``val/<wnid>``; the first 20 classes are used.

Without ``--mnist`` torchvision's download is used (`stream.data.download=true`).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure import api, recipe

NOTES = "<!-- notes -->"
"""What stands below this line of the table's file is written by hand and stays."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the table."""

    stream: str
    method: str
    buffer: int | None
    recipe: str
    overrides: tuple[str, ...] = ()
    suffix: str = ""
    published: float | None = None
    published_spread: float | None = None
    source: str = ""

    def run_name(self, seed: int) -> str:
        """Name of its run's folder."""
        return f"{self.recipe.replace('/', '-')}{self.suffix}_s{seed}"


DER = "DER (arXiv 2004.07211), table of MNIST-360, recalled and not verified"
"""Source of the numbers of MNIST-360."""


def settings() -> list[Setting]:
    """All rows, in the order of the table."""
    rows = [Setting(stream="seq-mnist", method="sgd", buffer=None, recipe="sgd/seq_mnist")]
    for buffer in (200, 500):
        for method in ("er", "derpp", "cls_er"):
            rows.append(_with_expected("seq-mnist", method, buffer, f"{method}/seq_mnist_{buffer}"))
    # The Dynamos repository has no settings for 200 slots: those for 500.
    fewer = {"overrides": ("method.buffer_size=200",), "suffix": "_b200"}
    rows.append(Setting(stream="seq-mnist", method="dynamos", buffer=200, recipe="dynamos/seq_mnist_500", **fewer))
    rows.append(Setting(stream="seq-mnist", method="dynamos", buffer=500, recipe="dynamos/seq_mnist_500"))
    rows.append(Setting(stream="seq-mnist", method="joint_net", buffer=None, recipe="joint_net/seq_mnist"))
    rows.append(Setting(stream="MNIST-360", method="sgd", buffer=None, recipe="sgd/mnist_360"))
    told = {"er": (49.27, 65.04), "der": (55.22, 69.11), "derpp": (54.16, 69.62)}
    for place, buffer in enumerate((200, 500)):
        for method in ("er", "der", "derpp", "agem_r", "cls_er", "dynamos"):
            number = told[method][place] if method in told else None
            name = f"{method}/mnist_360_{buffer}"
            row = Setting(
                stream="MNIST-360",
                method=method,
                buffer=buffer,
                recipe=name,
                published=number,
                source=DER if number else "",
            )
            rows.append(row)
    joint = {"published": 82.05, "source": DER}
    rows.append(Setting(stream="MNIST-360", method="joint_net", buffer=None, recipe="joint_net/mnist_360", **joint))
    for method in TINY:
        rows.append(Setting(stream="Tiny ImageNet, 20 classes", method=method, buffer=200, recipe=f"tiny_{method}"))
    return rows


def _with_expected(stream: str, method: str, buffer: int, name: str) -> Setting:
    """A setting whose published number is its recipe's, if there is one."""
    expected = next(iter(recipe.load(name).expect), None)
    if expected is None:
        return Setting(stream=stream, method=method, buffer=buffer, recipe=name)
    spread = [float(word) for word in expected.note.split() if word.replace(".", "", 1).isdigit()]
    return Setting(
        stream=stream,
        method=method,
        buffer=buffer,
        recipe=name,
        published=expected.value,
        published_spread=spread[-1] if spread else None,
        source=expected.source,
    )


MEAN, STD = [0.4802, 0.4480, 0.3975], [0.2770, 0.2691, 0.2821]
COMMON = {"batch_size": 16, "minibatch_size": 16, "buffer_size": 200, "epochs": 6, "augment": "crop_flip"}
TINY: dict[str, dict[str, Any]] = {
    "er": {
        "models": {"net": {"name": "resnet18", "width": 20, "classes": 20, "mean": MEAN, "std": STD}},
        "method": {"name": "er", "lr": 0.1, **COMMON},
    },
    "dynamos": {
        "models": {"net": {"name": "gated_resnet", "classes": 20}},
        "method": {
            "name": "dynamos",
            "warmup": 2,
            "alpha": 2.0,
            "beta": 3.0,
            "policy_alpha": 1.0,
            "reward_weight": 1.0,
            "prototype_weight": 0.5,
            **COMMON,
        },
    },
}
"""Models and settings on Tiny ImageNet: ER's are mammoth's with fewer epochs, Dynamos' those of SVHN with 500 slots."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="folder with MNIST; without it torchvision downloads")
    parser.add_argument("--tiny-imagenet", type=Path, help="folder with train/<wnid> and val/<wnid>")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of recipes' names, such as er/seq_mnist")
    parser.add_argument("--collect", action="store_true", help="run nothing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/replay_mnist"), help=".csv and .md")
    given = parser.parse_args()
    if not given.collect:
        for seed in given.seeds:
            for setting in settings():
                if any(part in setting.recipe + setting.suffix for part in given.only):
                    _run(setting, seed, given)
    runs = list(_finished(given.work))
    _write_csv(given.out.with_suffix(".csv"), runs)
    _write_table(given.out.with_suffix(".md"), runs)


def _run(setting: Setting, seed: int, given: argparse.Namespace) -> None:
    """Make a run, unless it is finished or its images are not there."""
    tiny = setting.recipe.startswith("tiny_")
    overrides = [f"run.seed={seed}", f"run.name={setting.run_name(seed)}", f"run.out={given.work}"]
    if tiny and not given.tiny_imagenet:
        return
    if tiny:
        what: str | Path = _tiny_recipe(setting.method, given.tiny_imagenet, given.work)
    else:
        what = setting.recipe
        root = f"root={given.mnist}" if given.mnist else "download=true"
        overrides += [f"stream.data.{root}", *setting.overrides]
    finished = api.execute(recipe.load(what, overrides), quiet=True)[0]
    print(setting.run_name(seed), finished.folder, flush=True)


def _tiny_recipe(method: str, images: Path, work: Path) -> Path:
    classes = sorted(folder.name for folder in (images / "train").iterdir() if folder.is_dir())[:20]
    data = {"name": "image_folder", "root": str(images), "classes": classes}
    scope = {"scope": "all"} if method == "dynamos" else {}
    tree = {
        "stream": {"name": "class_incremental", "data": data, "step": 5, "order": "numeric", **scope},
        **TINY[method],
    }
    file = work / f"tiny_{method}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tree))  # JSON is YAML
    return file


def _finished(work: Path) -> Iterator[dict[str, Any]]:
    """A row for each run that came to its end."""
    for setting in settings():
        for folder in sorted(work.glob(f"{setting.run_name(0)[:-1]}*/seed_*")):
            seed = int(folder.name.removeprefix("seed_"))
            if folder.parent.name != setting.run_name(seed) or not (folder / "card.json").exists():
                continue
            rows = json.loads((folder / "scores.json").read_text())["rows"]
            last = max(row["after"] for row in rows)
            final = [r["values"]["accuracy"] for r in rows if r["after"] == last and 0 <= r["asked"] <= last]
            events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
            tasks = {e["task"]: e for e in events if e["event"] == "task"}
            yield {
                "setting": setting,
                "seed": seed,
                "accuracy": statistics.mean(final),
                "learn_seconds": sum(e.get("learn_seconds") or 0 for e in tasks.values()),
                "test_seconds": sum(e.get("test_seconds") or 0 for e in tasks.values()),
            }


def _write_csv(file: Path, runs: list[dict[str, Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["stream", "method", "buffer", "seed", "accuracy", "learn_seconds", "test_seconds"])
        for run in runs:
            one = run["setting"]
            numbers = [round(run[key], 3) for key in ("accuracy", "learn_seconds", "test_seconds")]
            writer.writerow([one.stream, one.method, one.buffer or "", run["seed"], *numbers])


def _write_table(file: Path, runs: list[dict[str, Any]]) -> None:
    """The table, above the notes that a person wrote."""
    notes = file.read_text(encoding="utf-8").partition(NOTES)[2] if file.exists() else "\n"
    lines = [
        "# Replay on real images",
        "",
        "Final accuracy in percent: mean over the tasks after the last one (class-incremental), of the one test of",
        "MNIST-360. n: seeds. Seconds: wall time of training and tests, the least of all seeds.",
        "",
        f"Machine: {_processor()}, one thread a run. Raw data: {file.stem}.csv.",
        "",
        "| stream | method | slots | accuracy | n | seconds | published | gap |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for setting in settings():
        own = [run for run in runs if run["setting"] == setting]
        lines.append(_line(setting, own))
    sources = dict.fromkeys(s.source for s in settings() if s.source)
    lines += ["", "Published numbers: " + "; ".join(sources) + ".", "", NOTES]
    file.write_text("\n".join(lines) + notes, encoding="utf-8")


def _line(setting: Setting, runs: list[dict[str, Any]]) -> str:
    values = [run["accuracy"] for run in runs]
    ours, gap, seconds = "not run", "", ""
    if values:
        spread = statistics.stdev(values) if len(values) > 1 else None
        ours = f"{statistics.mean(values):.2f}" + (f" ± {spread:.2f}" if spread is not None else "")
        seconds = f"{min(run['learn_seconds'] + run['test_seconds'] for run in runs):.0f}"
        gap = _gap(statistics.mean(values), spread, setting)
    told = "" if setting.published is None else f"{setting.published:.2f}"
    if setting.published_spread:
        told += f" ± {setting.published_spread:.2f}"
    cells = [setting.stream, setting.method, setting.buffer or "", ours, len(values), seconds, told, gap]
    return "| " + " | ".join(map(str, cells)) + " |"


def _gap(mean: float, spread: float | None, setting: Setting) -> str:
    """Ours less the published number, in points and in spreads (of both, where both are known)."""
    if setting.published is None:
        return ""
    points = mean - setting.published
    if spread is None:
        return f"{points:+.2f}"
    both = math.hypot(spread, setting.published_spread or 0)
    return f"{points:+.2f} ({abs(points) / both:.1f} spreads)" if both else f"{points:+.2f}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
