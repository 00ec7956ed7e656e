"""What a version costs: bytes on disk, seconds to leave it, and memory of two versions that are served at once.

A CLIP of ViT-B/32's shape with random weights (what is measured does not hang on them) learns two tasks of two classes,
8 pictures each, by several methods: ``python benchmarks/versions.py [--out FILE]``. One process each for the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

METHODS: dict[str, dict[str, Any]] = {
    "rapf": {"epochs": 1, "batch_size": 8},
    "finetune, LoRA": {"name": "finetune", "epochs": 1, "batch_size": 8, "template": "a photo of a {}."},
    "mg_clip": {"epochs": 1, "batch_size": 8},
    "finetune, all weights": {
        "name": "finetune", "trains": "all", "lr": 1e-6, "epochs": 1, "batch_size": 8, "template": "a photo of a {}.",
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--memory", metavar="RUN", help="measure this process; used by itself")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="which")
    asked = parser.parse_args()
    if asked.memory:
        print(json.dumps(memory(asked.memory)))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        weights, data = clip(root / "clip"), pictures(root / "data")
        rows = [cost(name, root, weights, data) for name in asked.methods]
    if asked.out:
        asked.out.write_text(json.dumps(rows, indent=1) + "\n")


def cost(name: str, root: Path, weights: Path, data: Path) -> dict[str, Any]:
    """One method's row, printed."""
    from perdure import api, recipe, recording
    from perdure.run_folder import versions

    settings = {"name": name.partition(",")[0]} | METHODS[name]
    stream = {"name": "class_incremental", "data": {"name": "image_folder", "root": str(data)}, "step": 2}
    called = "".join(c if c.isalnum() else "_" for c in name)
    run_settings = {"device": "cpu", "out": str(root / "runs"), "name": called, "threads": 1}
    models = {"clip": {"name": "clip", "weights": str(weights)}}
    asked = recipe.load({"stream": stream, "method": settings, "models": models, "run": run_settings})
    spent, leave = [], recording.leave

    def timed(*given: Any) -> None:
        began = time.perf_counter()
        leave(*given)
        spent.append(time.perf_counter() - began)

    recording.leave = timed  # type: ignore[assignment]
    try:
        run = api.execute(asked, quiet=True)[0].folder
    finally:
        recording.leave = leave
    first, last = versions.listed(run)
    used = sum(file.stat().st_blocks * 512 for file in first.folder.rglob("*") if file.is_file())
    row: dict[str, Any] = {
        "method": name,
        "state_mb": [round(v.state.stat().st_size / 1e6, 2) for v in (first, last)],
        "folder_mb": round(used / 1e6, 2),
        "leaving_s": round(spent[0], 3),
    }
    print(json.dumps(row), flush=True)
    command = [sys.executable, __file__, "--memory", str(run)]
    row["loaded_mb"] = json.loads(subprocess.check_output(command, env=os.environ))
    print(json.dumps(row), flush=True)
    return row


def memory(run: str) -> dict[str, float]:
    """Megabytes (10^6) that one version takes when it has answered, two, and two that share what is equal, above those
    of Python. A page that two mappings of one weights file have in common counts once (PSS, Linux)."""
    import gc

    import psutil

    from perdure import prediction
    from perdure.serving.sharing import share

    def taken() -> float:
        gc.collect()
        return psutil.Process().memory_full_info().pss / 1e6

    def loaded(number: int) -> Any:
        model = prediction.load(f"{run}@{number}", device="cpu")
        model.predict(np.zeros((32, 32, 3), np.uint8))
        return model

    before = taken()
    one = loaded(1)
    first = taken()
    two = loaded(2)
    second = taken()
    shared = share(two.opened.method, one.opened.method)
    found = {"one": first - before, "two": second - before, "two_sharing": taken() - before, "shared": shared / 1e6}
    return {name: round(value, 1) for name, value in found.items()}


def clip(folder: Path) -> Path:
    """Random weights in the shape of ViT-B/32, with the embedded CLIP's tokenizer."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    import perdure

    own = Path(perdure.__file__).parent / "models" / "micro" / "micro-clip"
    text = json.loads((own / "config.json").read_text())["text_config"]
    marks = {key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in text}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=marks)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(own / name, folder / name)
    facts = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "resample": 3}
    facts |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder


def pictures(folder: Path) -> Path:
    """Four classes of noise around a color."""
    for label, name in enumerate(("red circle", "red square", "blue circle", "blue square")):
        for i in range(10):
            pixels = np.random.default_rng([label, i]).integers(0, 60, (224, 224, 3)) + 45 * label
            file = folder / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(file)
    return folder


if __name__ == "__main__":
    main()
