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
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from perdure import api, checkpoint, recipe, updating
from perdure.run_folder import promoting, versions
from perdure.testing.running import assert_equal_state

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
    """The first update again, in processes that are killed; when one ends before, the run is copied anew."""
    draws, gate = random.Random(0), work / "gate.yaml"
    gate.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in GATE.items()), encoding="utf-8")
    began, before = time.perf_counter(), promoting.file_digest(versions.resolve(work / "before").state)
    moments: list[float] = []
    intact, ended = 0, []
    while len(moments) < kills or not ended:
        again = work / f"again_{len(ended)}"
        if not again.is_dir():
            shutil.copytree(work / "before", again)
        command = [sys.executable, "-m", "perdure", "update", str(again), "--data", str(weeks["week_1"])]
        command += ["--gate", str(gate), "--quiet"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        delay = draws.uniform(1.0, 14.0) if len(moments) < kills else None
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            moments.append(round(delay or 0.0, 1))
            now = versions.resolve(again)
            whole = now.number == 1 and promoting.file_digest(now.state) == before
            intact += whole or not promoting.faults(now)
        if versions.current(again) == 2:
            ended.append(same_state(run, again))
    return {
        "killed_after_seconds": moments,
        "promoted_version_intact": intact,
        "ended": len(ended),
        "same_state_as_never_killed": sum(ended),
        "seconds": round(time.perf_counter() - began, 1),
    }


def same_state(run: Path, other: Path) -> bool:
    """Whether version 2 of both is the same, value for value and bit for bit; files may differ in the order of keys."""
    one, two = (checkpoint.load(versions.resolve(f"{each}@2").state) for each in (run, other))
    try:
        assert_equal_state(one, two, "another state")
    except AssertionError:
        return False
    return True


def _weeks(pack: Path, work: Path) -> dict[str, Path]:
    """Small images of every week, a folder a class."""
    source = pack
    if pack.is_file():
        source = work / "pack"
        shutil.unpack_archive(pack, source)
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
