"""PHP and sequential fine-tuning on real speech and real digits: a spoken digit with a handwritten one.

    python benchmarks/php_fsdd.py --recordings DIR --mnist DIR --pairs av_digits_pairs.csv --work DIR --out DIR

`recordings`: the wav files of the Free Spoken Digit Dataset (6 speakers, 10 digits, 50 takes), as a folder or a tar
archive. `mnist`: the four idx files. `pairs`: which image goes with which recording (columns wav, digit, speaker, take,
mnist_file, mnist_index). They become folders of clips below `work` (one second, one frame), which the reader of one's
own clips reads; a task is a speaker, or a pair of digits. The models are the embedded micro ones, which know neither
speech nor digits and about a hundred words: so each digit is called by the name of a shape.

Knows how clips are made of the two data sets and which methods run. Does not know any method's inside.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import tarfile
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from PIL import Image

from perdure import api, recipe
from perdure.data import mnist
from perdure.data.microworld.scenes import SHAPES
from perdure.reporting import load, report, tables

RATE = 32_000
SIZES = {"mask_dim": 64, "mask_heads": 4, "pixel_statistics": "clip", "cache_gigabytes": 1}
SCHEDULE = {"epochs": 4, "batch_size": 8}
METHODS: dict[str, dict[str, Any]] = {
    "php": {
        "shallow_blocks": [0],
        "mid_blocks": [1],
        "deep_blocks": [2, 3],
        "latents": 8,
        "adapter_reduction": 4,
        "mid_length": 8,
        "codebook": 32,
        "generator_heads": 4,
        "generator_depth": 2,
        "lr": 1e-3,
    },
    "av_finetune": {"blocks": [0, 1, 2, 3], "latents": 8, "reduction": 4, "lr": 3e-3},
    "av_l2p": {"lr": 3e-3},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the clips and the runs; kept")
    parser.add_argument("--tasks", choices=["speakers", "digits"], default="speakers")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-per-task", type=int, default=120)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings of all recipes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    given = parser.parse_args()
    clips = given.work / "clips"
    if not (clips / "complete").is_file():
        _build(given.recordings, given.mnist, given.pairs, clips)
    runs = []
    for seed in given.seeds:
        for name in given.methods:
            asked = recipe.load(_write(name, given, clips), [f"run.seed={seed}", f"stream.seed={seed}", *given.set])
            finished = api.execute(asked, quiet=True)[0]
            runs.append(finished.folder)
            numbers = {n.title: round(v, 2) for n, v in tables.run_numbers(load.read(finished.folder)).items()}
            print(name, seed, json.dumps(numbers), flush=True)
    pages = report(runs, given.out)
    print(pages["report.md"].read_text())


def _build(recordings: Path, digits: Path, pairs: Path, out: Path) -> None:
    """``speakers/<speaker>/{frames,wave}/<class>/<speaker>_<take>`` and links to all of them in ``everyone``."""
    data = mnist.read(mnist.Config(root=digits))
    sounds = _sounds(recordings)
    with pairs.open(newline="") as lines:
        for row in csv.DictReader(lines):
            name, clip = SHAPES[int(row["digit"])], f"{row['speaker']}_{row['take']}"
            example = getattr(data, row["mnist_file"])[int(row["mnist_index"])]
            assert example.target == int(row["digit"]), row
            frames, waves = (out / "speakers" / row["speaker"] / kind / name for kind in ("frames", "wave"))
            (frames / clip).mkdir(parents=True, exist_ok=True)
            waves.mkdir(parents=True, exist_ok=True)
            for path in (frames / clip, waves / f"{clip}.npy"):
                link = out / "everyone" / path.parent.parent.name / name / path.name
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.is_symlink():
                    link.symlink_to(path.resolve())
            Image.fromarray(example.inputs["image"]).save(frames / clip / "00000001.jpg", quality=95)
            np.save(waves / f"{clip}.npy", _second(*sounds[row["wav"]]).astype(np.float16))
    (out / "complete").touch()


def _sounds(recordings: Path) -> dict[str, tuple[np.ndarray, int]]:
    """Samples in [-1, 1] and their rate by file name."""
    if recordings.is_dir():
        files = ((path.name, path.read_bytes()) for path in sorted(recordings.glob("*.wav")))
        return {name: _samples(content) for name, content in files}
    with tarfile.open(recordings) as archive:
        members = [m for m in archive if m.isfile() and m.name.endswith(".wav")]
        return {Path(m.name).name: _samples(archive.extractfile(m).read()) for m in members}  # type: ignore[union-attr]


def _samples(content: bytes) -> tuple[np.ndarray, int]:
    with wave.open(io.BytesIO(content)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
        return samples.reshape(-1, file.getnchannels()).mean(1), file.getframerate()


def _second(samples: np.ndarray, rate: int) -> np.ndarray:
    """One second at 32 kHz: what is longer is cut, what is shorter ends in silence."""
    heard = soxr.resample(samples, rate, RATE)[:RATE]
    return np.pad(heard, (0, RATE - len(heard)))


def _write(name: str, given: Any, clips: Path) -> Path:
    """The recipe of a method as a file."""
    if given.tasks == "speakers":
        names = sorted(path.name for path in (clips / "speakers").iterdir())
        data = [_folder(clips / "speakers" / speaker) for speaker in names]
    else:
        data = [_folder(clips / "everyone", SHAPES[i : i + 2]) for i in range(0, 10, 2)]
        names = [f"digits {i} and {i + 1}" for i in range(0, 10, 2)]
    more = {"cache_folder": str(given.work / "cache")}
    stream = {"name": "audio_visual", "data": data, "names": names, "train_per_task": given.train_per_task}
    tree = {
        "stream": stream,
        "models": {
            "clip": {"name": "clip", "weights": "micro-clip"},
            "audio": {"name": "clap", "weights": "micro-clap"},
        },
        "method": {"name": name, **METHODS[name], **SIZES, **SCHEDULE, **more},
        "evaluate": {"batch_size": 32},
        "run": {"name": f"{name}-{given.tasks}", "out": str(given.work / "runs"), "device": "cpu"},
    }
    file = given.work / f"{name}-{given.tasks}.yaml"
    file.write_text(json.dumps(tree))  # JSON is YAML
    return file


def _folder(root: Path, classes: tuple[str, ...] = SHAPES) -> Mapping[str, Any]:
    return {"name": "clip_folder", "root": str(root), "classes": list(classes), "segments": 1}


if __name__ == "__main__":
    main()
