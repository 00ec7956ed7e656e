"""Tiny copies of the four audio-visual data sets in their published layouts, written for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

AVE_ROWS = ("Bark&ave_0&good&2&5", "Bark&ave_1&good&0&10", "Truck&ave_2&good&0&3", "Truck&ave_3&good&4&10")
LLP_ROWS = ("AAAAAAAAAAA_0_10\tSpeech,Dog", "BBBBBBBBBBB_5_15\tCar")


def clip(root: Path, name: str, *, seconds: int = 10, rate: int = 32000) -> None:
    """Frames of one color and a quiet tone."""
    folder = root / "frames" / name
    folder.mkdir(parents=True, exist_ok=True)
    color = tuple(np.random.default_rng(len(name)).integers(0, 256, 3).tolist())
    for i in range(seconds):
        Image.new("RGB", (24, 16), color).save(folder / f"{i + 1:08d}.jpg")
    wave = root / "wave" / f"{name}.npy"
    wave.parent.mkdir(parents=True, exist_ok=True)
    np.save(wave, np.sin(np.arange(seconds * rate) / 9).astype(np.float32) * 0.1)


def ave(root: Path, *, stored_labels: bool = False) -> Path:
    import h5py

    labels = root / "labels"
    labels.mkdir(parents=True)
    (labels / "Annotations.txt").write_text("\n".join(["Category&VideoID&Quality&StartTime&EndTime", *AVE_ROWS]))
    for split, rows in (("train", [0, 2]), ("val", [1]), ("test", [3, 1])):
        with h5py.File(labels / f"{split}_order.h5", "w") as file:
            file["order"] = np.array(rows)
    if stored_labels:
        table = np.zeros((4, 10, 29))
        table[:, :, 28] = 1
        table[0, 0] = 0
        table[0, 0, 2] = 1
        with h5py.File(labels / "labels.h5", "w") as file:
            file["avadataset"] = table
    for i in range(4):
        clip(root, f"ave_{i}")
    return root


def llp(root: Path) -> Path:
    labels = root / "labels"
    labels.mkdir(parents=True)
    for file in ("AVVP_train", "AVVP_val_pd", "AVVP_test_pd"):
        (labels / f"{file}.csv").write_text("\n".join(["filename\tevent_labels", *LLP_ROWS]) + "\n")
    head = "filename\tonset\toffset\tevent_labels\n"
    (labels / "AVVP_eval_audio.csv").write_text(head + "AAAAAAAAAAA_0_10\t0\t4\tSpeech\nBBBBBBBBBBB_5_15\t8\t10\tCar\n")
    (labels / "AVVP_eval_visual.csv").write_text(head + "AAAAAAAAAAA_0_10\t0\t10\tDog\n")
    for row in LLP_ROWS:
        clip(root, row[:11])
    return root


def question(
    video: str, number: int, *, text: str, kind: Sequence[str], answer: str, values: Sequence[str] = ()
) -> dict:
    return {
        "video_id": video,
        "question_id": number,
        "type": json.dumps(list(kind)),
        "question_content": text,
        "templ_values": json.dumps(list(values)),
        "question_deleted": 0,
        "anser": answer,
    }


def music_avqa(root: Path, *, extra: Sequence[dict] = ()) -> Path:
    folder = root / "labels" / "json"
    folder.mkdir(parents=True)
    rows = [
        question(
            "00000093",
            1,
            text="Is the <Object> in the video always playing?",
            kind=("Audio-Visual", "Existential"),
            answer="no",
            values=["violin"],
        ),
        question(
            "00000094",
            2,
            text="How many instruments are sounding in the video?",
            kind=("Audio-Visual", "Counting"),
            answer="two",
        ),
        *extra,
    ]
    for split in ("train", "val", "test"):
        (folder / f"avqa-{split}.json").write_text(json.dumps(rows))
    for name in ("00000093", "00000094"):
        clip(root, name)
    return root


def avs_s4(root: Path, *, packed: bool = False, size: int = 16) -> Path:
    rows = [("one", "dog_barking", "train"), ("two", "dog_barking", "test"), ("three", "race_car", "val")]
    root.mkdir(parents=True)
    table = "\n".join(["name,start,category,split", *(f"{n},0,{c},{s}" for n, c, s in rows)])
    (root / "s4_meta_data.csv").write_text(table)
    for name, category, split in rows:
        for kind, mode in (("visual_frames", "RGB"), ("gt_masks", "1")):
            folder = root / kind / split / category / name
            folder.mkdir(parents=True)
            for i in range(1 if kind == "gt_masks" and split == "train" else 5):
                image = Image.new("RGB", (size, size), (90, 20, 20))
                image.paste((255, 255, 255) if mode == "1" else (20, 200, 90), (0, 0, size // 2, size))
                image.convert(mode).save(folder / f"{name}_{i + 1}.png") if mode == "RGB" else half(size).save(
                    folder / f"{name}_{i + 1}.png"
                )
        waves = root / "wave" / split / category
        waves.mkdir(parents=True)
        wave = np.sin(np.arange(160000) / 9)
        if packed:
            np.save(waves / "AVS.npy", np.array({f"{name}.wav": wave}, dtype=object))
        else:
            np.save(waves / f"{name}.npy", wave)
    return root


def half(size: int) -> Image.Image:
    """A mask of the left half, mode 1."""
    mask = np.zeros((size, size), dtype=bool)
    mask[:, : size // 2] = True
    return Image.fromarray(mask)
