"""Class-incremental methods on real images: a small CLIP that knows 100 classes learns 100 others, ten at a time.

    python benchmarks/pretrain_small_clip.py --images DIR/train --classes DIR/classes.tsv --first 100 --out small_clip
    python benchmarks/real_images.py --images DIR --clip small_clip --seeds 0 1 2 --out tiny_imagenet.csv
    python benchmarks/real_images.py --images CALTECH --clip small_clip --seeds 0 1 2 --out caltech.csv
    python benchmarks/real_images.py --table caltech.csv

DIR holds ``train/<class>`` and ``val/<class>``, with ``classes.tsv`` where folders are named by WordNet ids, or folders
of classes alone, of which a keyed fifth is the test. Classes that the CLIP was trained on are left out. A seed is
another order of classes and all that a method draws. The CLIP has OpenAI's real vocabulary and was trained on 4500
images only: its zero-shot accuracy on other classes is near chance, so that nearly all of a method's accuracy is
learned here. Features of frozen towers are made once for all (`run.features`). Figures are written as they come.

Knows which methods run with which settings. Does not know any method's inside.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from claims import means, read, write

from perdure import api, recipe
from perdure.metrics import TASK_KNOWN
from perdure.reporting import load, tables

WEIGHTS = {"trains": "all", "lr": 1e-4, "epochs": 3, "batch_size": 32}
"""Of the methods that train all weights: a tenth of pretraining's rate."""
PROBE = {"trains": "head", "epochs": 20, "batch_size": 32, "head_lr": 0.01}
"""Of a head alone, on frozen features."""
TOWERS = {"lr": 1e-4, "epochs": 3, "batch_size": 32, "warmup_steps": 5}
PROMPTS = {"augment": "none", "epochs": 5, "batch_size": 16}
TEXTS = {"template": "a photo of a {}."}
WAYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "zero-shot": ("continual_clip", "clip", TEXTS),
    "prototype": ("prototype", "clip", {}),
    "prototype, vit": ("prototype", "vit", {}),
    "ranpac": ("ranpac", "backbone", {"projection_dim": 2000}),
    "ranpac, vit": ("ranpac", "backbone vit", {"projection_dim": 2000}),
    "rail": ("rail", "clip", {"width": 2000}),
    "bofa": ("bofa", "clip", {"augment": "none", "rank": 16}),
    "rapf": ("rapf", "clip", TEXTS),
    "finetune, head": ("finetune", "vit", PROBE),
    "finetune, own rows": ("finetune", "vit", {**PROBE, "loss": "local"}),
    "lwf, head": ("lwf", "vit", PROBE),
    "joint, head": ("joint", "vit", PROBE),
    "finetune": ("finetune", "clip", {**WEIGHTS, **TEXTS}),
    "lwf": ("lwf", "clip", {**WEIGHTS, **TEXTS}),
    "joint": ("joint", "clip", {**WEIGHTS, **TEXTS}),
    "finetune, vit": ("finetune", "vit", WEIGHTS),
    "mg_clip": ("mg_clip", "clip", {"batch_size": 32, **TEXTS}),
    "magmax": ("magmax", "clip", {**TOWERS, **TEXTS}),
    "wise_ft": ("wise_ft", "clip", {**TOWERS, **TEXTS}),
    "l2p": ("l2p", "vit", {"augment": "none"}),
    "dualprompt": ("dualprompt", "vit", {"augment": "none", "general_blocks": [0], "expert_blocks": [1, 2]}),
    "coda_prompt": ("coda_prompt", "vit", {**PROMPTS, "blocks": [0, 1, 2]}),
}
"""By name: method, role (with the family of a backbone) and settings."""
SHORT = {"average": "average", "last": "final", "when_learned": "when learned", "forgetting": "forgetting"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--clip", type=Path, help="folder that pretrain_small_clip.py wrote")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--step", type=int, default=10, help="classes a task")
    parser.add_argument("--work", type=Path, help="folder of the runs; kept, so that the command can be repeated")
    parser.add_argument("--table", type=Path, help="print the table of a CSV that is there; run nothing")
    parser.add_argument("--out", type=Path, help="CSV; what is there for other ways and seeds stays")
    given = parser.parse_args()
    if given.table is None:
        measure(given)
    print("\n".join(means(read(given.table or given.out))))


def measure(given: argparse.Namespace) -> None:
    """Run what is asked for; each number is in the CSV as soon as it is known."""
    work = given.work or Path(tempfile.mkdtemp())
    data = work / "images"
    _new_classes(given.images, given.clip, data)
    table = {way: {s: dict(n) for s, n in seeds.items()} for way, seeds in _known(given.out).items()}
    for seed in given.seeds:
        for way in given.ways:
            changes = [f"run.seed={seed}", f"stream.order_seed={seed}"]
            asked = recipe.load(_write(way, given.step, data, given.clip, work), changes)
            folder = Path(api.execute(asked, quiet=True)[0].folder)
            found = tables.run_numbers(load.read(folder))
            numbers = {
                SHORT[n.aggregate] + (", task known" if n.metric == TASK_KNOWN else ""): round(value, 3)
                for n, value in found.items()
                if n.aggregate in SHORT and n.metric in ("accuracy", TASK_KNOWN)
            }
            table.setdefault(way, {})[seed] = numbers
            print(seed, way, json.dumps(numbers), flush=True)
            rows = [(w, s, n, v) for w, seeds in table.items() for s, one in seeds.items() for n, v in one.items()]
            write([dict(zip(("way", "seed", "number", "value"), row)) for row in rows], given.out)


def _known(file: Path) -> Mapping[str, Mapping[int, Mapping[str, float]]]:
    return read(file) if file.is_file() else {}


def _new_classes(images: Path, clip: Path, out: Path) -> None:
    """Links to the folders of the classes that the CLIP was not trained on, under their names."""
    known = set(json.loads((clip / "pretraining.json").read_text())["classes"])
    listed = images / "classes.tsv"
    titles = dict(line.split("\t") for line in listed.read_text().splitlines()) if listed.is_file() else {}
    parts = (("train", "train"), ("test", "val")) if (images / "train").is_dir() else (("", ""),)
    for split, source in parts:
        for folder in sorted(path for path in (images / source).iterdir() if path.is_dir()):
            title = titles.get(folder.name, folder.name).split(",")[0].strip().replace("/", " ")
            link = out / split / title
            if folder.name not in known and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(folder.resolve(), target_is_directory=True)


def _write(way: str, step: int, data: Path, clip: Path, work: Path) -> Path:
    """The recipe of a way as a file."""
    method, role, settings = WAYS[way]
    role, _, family = role.partition(" ")
    family = family or ("vit" if role == "vit" else "clip")
    name = way.replace(", ", "-").replace(" ", "_")
    stream = {"name": "class_incremental", "step": step, "data": {"name": "image_folder", "root": str(data)}}
    tree = {
        "stream": {**stream, "order": "random"},
        "models": {role: {"name": family, "weights": str(clip)}},
        "method": {"name": method, **settings},
        "evaluate": {"metrics": ["accuracy", TASK_KNOWN]},
        "run": {"name": name, "out": str(work), "device": "cpu", "features": str(work / "features")},
    }
    file = work / f"{name}.yaml"
    file.write_text(json.dumps(tree))  # JSON is YAML
    return file


if __name__ == "__main__":
    main()
