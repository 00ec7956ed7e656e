"""A model in use is updated three times on real photographs, and killed twenty times while it is.

    python benchmarks/update.py --pack pacs_subset.tar.xz --work work --out benchmarks/results/update.json

The pack is a tar (or a folder) of PACS: ``<domain>/<class>/*.jpg`` somewhere below. Images are made 32 pixels wide. The
run learns four classes of photographs by DER++; then come (1) the other three classes, (2) sketches, every class in its
neighbor's folder, (3) cartoons of all classes. Each update is judged by one gate; what a version takes on disk is
written down. Then the first update is done again in processes that are killed at random moments; the promoted version
must answer as before, and the last process must end in the same state, bit for bit.

Knows the weeks and the gate. Does not know how an update works.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from perdure import api, recipe, updating
from perdure.run_folder import promoting, versions

SIZE = 32
FIRST = 4
"""Classes of the first run."""
GATE = {"retention": 30, "mean": None, "learned": True}
"""Eight tests a class and domain are kept, which can only prove large margins: 2 points would take 774 tests a task."""
RECIPE: dict[str, Any] = {
    "method": {"name": "derpp", "epochs": 12, "lr": 0.05, "batch_size": 16, "minibatch_size": 16, "buffer_size": 200},
    "models": {"net": {"name": "resnet18", "classes": 7, "width": 10}},
    "run": {"device": "cpu", "name": "photos", "save_every": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    parser.add_argument("--out", type=Path, required=True, help="JSON of the figures")
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    weeks = _weeks(given.pack, given.work)
    stream = {"name": "class_incremental", "data": {"name": "image_folder", "root": str(weeks["base"])}, "step": FIRST}
    asked = recipe.load({"stream": stream, **RECIPE}, [f"run.out={given.work / 'runs'}"])
    api.execute(asked, quiet=True)
    run = asked.folder(0)
    shutil.copytree(run, given.work / "before")
    rows = [_row(versions.resolve(run), 0.0)]
    for name in ("week_1", "week_2", "week_3"):
        began = time.perf_counter()
        version = updating.update(run, weeks[name], gate=GATE, quiet=True)
        rows.append(_row(version, time.perf_counter() - began))
        print(json.dumps(rows[-1]), flush=True)
    promoting.rollback(run, reason="the end of the benchmark")
    kills = _killed(given.work, weeks, run, given.kills)
    found = {"versions": rows, "kept_bytes": _bytes(run / "kept"), "kills": kills}
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found["kills"]))


def _row(version: versions.Version, seconds: float) -> dict[str, Any]:
    scores = version.scores
    last = len(scores["tasks"]) - 1
    tested = [row for row in scores["rows"] if row["after"] == last]
    accuracy = {scores["tasks"][row["asked"]]: round(row["values"]["accuracy"], 2) for row in tested}
    gate, keys = version.about.get("gate", {}), ("rule", "task", "n", "before", "after", "low", "outcome")
    return {
        "version": version.number,
        "parent": version.about.get("parent"),
        "task": scores["tasks"][-1],
        "accuracy": accuracy,
        "gate": gate.get("outcome"),
        "rules": [{key: rule.get(key) for key in keys} for rule in gate.get("rules", [])],
        "promoted": version.current,
        "state_bytes": version.state.stat().st_size,
        "folder_bytes": _bytes(version.folder) if version.number > 1 else None,
        "seconds": round(seconds, 1),
    }


def _killed(work: Path, weeks: dict[str, Path], run: Path, kills: int) -> dict[str, Any]:
    """The first update again, in processes that are killed."""
    again, draws = work / "again", random.Random(0)
    shutil.copytree(work / "before", again)
    wanted = versions.resolve(f"{run}@2").about["state"]["digest"]
    before = promoting.file_digest(versions.resolve(again).state)
    gate = work / "gate.yaml"
    gate.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in GATE.items()), encoding="utf-8")
    command = [sys.executable, "-m", "perdure", "update", str(again), "--data", str(weeks["week_1"])]
    command += ["--gate", str(gate), "--quiet"]
    moments, intact, began = [], 0, time.perf_counter()
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))
        delay = draws.uniform(1.0, 14.0)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        moments.append(round(delay, 1))
        now = versions.resolve(again)
        intact += now.number == 1 and promoting.file_digest(now.state) == before
        if now.number != 1:
            break
    if versions.current(again) == 1:
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    digest = versions.resolve(f"{again}@2").about["state"]["digest"]
    return {
        "killed_after_seconds": moments,
        "promoted_version_intact": intact,
        "versions": versions.numbers(again),
        "same_state_as_never_killed": digest == wanted,
        "seconds": round(time.perf_counter() - began, 1),
    }


def _weeks(pack: Path, work: Path) -> dict[str, Path]:
    """Small images of every week, a folder a class."""
    source = pack
    if pack.is_file():
        source = work / "pack"
        with tarfile.open(pack) as archive:
            archive.extractall(source, filter="data")
    domains = {p.name: p for p in source.rglob("*") if p.is_dir() and p.name in ("photo", "sketch", "cartoon")}
    classes = sorted(p.name for p in domains["photo"].iterdir() if p.is_dir())
    old, new = classes[:FIRST], classes[FIRST:]
    neighbor = dict(zip(classes, [*classes[1:], classes[0]]))
    return {
        "base": _small(domains["photo"], {c: c for c in old}, work / "base"),
        "week_1": _small(domains["photo"], {c: c for c in new}, work / "week_1"),
        "week_2": _small(domains["sketch"], neighbor, work / "week_2"),
        "week_3": _small(domains["cartoon"], {c: c for c in classes}, work / "week_3"),
    }


def _small(domain: Path, names: dict[str, str], out: Path) -> Path:
    for theirs, ours in names.items():
        for file in sorted((domain / theirs).iterdir()):
            (out / ours).mkdir(parents=True, exist_ok=True)
            with Image.open(file) as image:
                image.convert("RGB").resize((SIZE, SIZE)).save(out / ours / f"{file.stem}.png")
    return out


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


if __name__ == "__main__":
    main()
