"""Class-incremental methods on real images: a small CLIP that knows 100 classes learns 100 others, ten at a time.

    python benchmarks/pretrain_small_clip.py --images DIR/train --classes DIR/classes.tsv --first 100 --out small_clip
    python benchmarks/real_images.py --images DIR --clip small_clip --seeds 0 1 2 --out benchmarks/results/tiny_imagenet

DIR holds ``train/<wnid>``, ``val/<wnid>`` and ``classes.tsv`` (Tiny-ImageNet with labeled validation folders). The CLIP
has OpenAI's real vocabulary and was trained on 4500 images only: its zero-shot accuracy on classes that it has not seen
is near chance, so that nearly all of a method's accuracy is learned here. Figures are written as they come.

Knows which methods run with which settings. Does not know any method's inside.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure import api, recipe
from perdure.reporting import report

WEIGHTS = {"trains": "all", "lr": 1e-4, "epochs": 3, "batch_size": 32}
"""Of the methods that train all weights: a tenth of pretraining's rate."""
METHODS: dict[str, dict[str, Any]] = {
    "continual_clip": {},
    "prototype": {},
    "finetune": WEIGHTS,
    "lwf": WEIGHTS,
    "rapf": {},
    "mg_clip": {"batch_size": 32},
    "joint": WEIGHTS,
}
TEMPLATE = "a photo of a {}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True, help="folder that pretrain_small_clip.py wrote")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--step", type=int, default=10, help="classes a task")
    parser.add_argument("--work", type=Path, help="folder of the runs; kept, so that the command can be repeated")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    given = parser.parse_args()
    work = given.work or Path(tempfile.mkdtemp())
    data = work / "images"
    _new_classes(given.images, given.clip, data)
    runs = []
    for name in given.methods:
        for seed in given.seeds:
            asked = recipe.load(_write(name, given.step, data, given.clip, work), [f"run.seed={seed}"])
            finished = api.execute(asked, quiet=True)[0]
            runs.append(finished.folder)
            print(name, seed, json.dumps(api.load_summary(finished.folder)), flush=True)
    pages = report(runs, given.out)
    shutil.copy(given.clip / "pretraining.json", given.out / "pretraining.json")
    print(pages["report.md"].read_text())


def _new_classes(images: Path, clip: Path, out: Path) -> None:
    """Links to the folders of the classes that the CLIP was not trained on, under their names."""
    known = set(json.loads((clip / "pretraining.json").read_text())["classes"])
    titles = dict(line.split("\t") for line in (images / "classes.tsv").read_text().splitlines())
    for split, source in (("train", "train"), ("test", "val")):
        for folder in sorted(path for path in (images / source).iterdir() if path.is_dir()):
            title = titles[folder.name].split(",")[0].strip().replace("/", " ")
            link = out / split / title
            if folder.name not in known and not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(folder.resolve(), target_is_directory=True)


def _write(name: str, step: int, data: Path, clip: Path, work: Path) -> Path:
    """The recipe of a method as a file."""
    settings: Mapping[str, Any] = METHODS[name]
    template = {} if name == "prototype" else {"template": TEMPLATE}
    tree = {
        "stream": {"name": "class_incremental", "step": step, "data": {"name": "image_folder", "root": str(data)}},
        "models": {"clip": {"name": "clip", "weights": str(clip)}},
        "method": {"name": name, **template, **settings},
        "run": {"name": name, "out": str(work), "device": "cpu"},
    }
    file = work / f"{name}.yaml"
    file.write_text(json.dumps(tree))  # JSON is YAML
    return file


if __name__ == "__main__":
    main()
