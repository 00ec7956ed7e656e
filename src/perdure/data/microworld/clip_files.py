"""Clips of microworld as files, in the layouts of AVE, LLP, AVSBench-S4 and MUSIC-AVQA.

Knows those trees: frames, waves (``.npy`` at 32 kHz, as the readers take them, and ``.wav`` to listen to) and
annotation files. Does not know how they are read back, nor how clips are made (`clips`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perdure.data.microworld import clip_questions, clips, sound
from perdure.data.microworld.clips import EVENT_CLASSES, Clips
from perdure.data.microworld.scenes import SHAPES

SPLITS = (("train", "train"), ("validation", "val"), ("test", "test"))
"""Names here and in the layouts."""
_CHUNK = 32
"""Clips that are made at a time."""

Draw = Callable[[int, str, Any], Clips]


def ave(out: Path, config: Any) -> list[Path]:
    """``labels/{categories,Annotations}.txt``, ``labels.h5`` and ``*_order.h5``; 20 classes of color and shape."""
    rows, table, written = ["Category&VideoID&Quality&StartTime&EndTime"], [], []
    orders: dict[str, list[int]] = {word: [] for _, word in SPLITS}
    for word, first, some in _all(config, clips.localized):
        written += _prepared(out, some, word, first, config.image_size)
        for i in range(len(some)):
            label = (first + i) % len(EVENT_CLASSES)
            begin, end = clips.spans(some.seen[i, 0] & some.heard[i, 0])[0]
            rows.append(f"{EVENT_CLASSES[label]}&{_name(word, first + i)}&good&{begin}&{end}")
            orders[word].append(len(table))
            inside = (np.arange(clips.SECONDS) >= begin) & (np.arange(clips.SECONDS) < end)
            table.append(np.where(inside, label, len(EVENT_CLASSES)))
    labels = out / "labels"
    written += [_text(labels / "categories.txt", EVENT_CLASSES), _text(labels / "Annotations.txt", rows)]
    one_hot = np.eye(len(EVENT_CLASSES) + 1, dtype=np.float32)[np.asarray(table, np.int64).reshape(-1, clips.SECONDS)]
    written.append(_h5(labels / "labels.h5", "avadataset", one_hot))
    written += [_h5(labels / f"{w}_order.h5", "order", np.asarray(order, np.int64)) for w, order in orders.items()]
    return written


def llp(out: Path, config: Any) -> list[Path]:
    """``labels/categories.txt`` and the five csv files; ten classes, the shapes; weak labels for training."""
    listed: dict[str, list[str]] = {word: ["filename\tevent_labels"] for _, word in SPLITS}
    times = {m: ["filename\tonset\toffset\tevent_labels"] for m in ("audio", "visual")}
    written = []
    for word, first, some in _all(config, clips.parsed):
        written += _prepared(out, some, word, first, config.image_size)
        for i in range(len(some)):
            file = f"{_name(word, first + i)}_0_{clips.SECONDS}"
            there = [(o.shape, k) for k, o in enumerate(some.scenes.objects(i))]
            listed[word].append(f"{file}\t{','.join(shape for shape, _ in there)}")
            if word == "train":
                continue
            for modality, spans in (("audio", some.heard), ("visual", some.seen)):
                for shape, k in there:
                    times[modality] += [f"{file}\t{a}\t{b}\t{shape}" for a, b in clips.spans(spans[i, k])]
    labels = out / "labels"
    files = {"AVVP_train": listed["train"], "AVVP_val_pd": listed["val"], "AVVP_test_pd": listed["test"]}
    files |= {f"AVVP_eval_{modality}": lines for modality, lines in times.items()}
    written += [_text(labels / f"{name}.csv", lines) for name, lines in files.items()]
    return [*written, _text(labels / "categories.txt", SHAPES)]


def avs(out: Path, config: Any) -> list[Path]:
    """``s4_meta_data.csv``, ``visual_frames``, ``gt_masks`` (training: the first), ``wave`` and ``audio_wav``."""
    table, written = ["name,start,category,split"], []
    for word, first, some in _all(config, clips.segmented):
        pictures, truth = clips.frames(some, config.image_size), clips.masks(some, config.image_size)
        waves = clips.waves(some)
        for i in range(len(some)):
            name, category = _name(word, first + i), SHAPES[some.scenes.shape[i, 0]]
            table.append(f"{name},0,{category},{word}")
            place = f"{word}/{category}"
            for second in range(some.seconds):
                file = f"{place}/{name}/{name}_{second + 1}.png"
                written.append(_image(out / "visual_frames" / file, Image.fromarray(pictures[i, second])))
                if word != "train" or second == 0:
                    written.append(_image(out / "gt_masks" / file, Image.fromarray(truth[i, second])))
            written.append(_npy(out / "wave" / place / f"{name}.npy", waves[i]))
            written.append(sound.write_wav(out / "audio_wav" / place / f"{name}.wav", waves[i]))
    return [*written, _text(out / "s4_meta_data.csv", table)]


def avqa(out: Path, config: Any) -> list[Path]:
    """``labels/json/avqa-*.json``, three questions a clip; read them with ``vocabulary: train``."""
    written, asked = [], {}
    for word, first, some in _all(config, clips.asked_about):
        written += _prepared(out, some, word, first, config.image_size)
        names = [_name(word, first + i) for i in range(len(some))]
        asked.setdefault(word, []).extend(zip(names, clip_questions.questions(some)))
    training = [rows for _, rows in asked.get("train", [])]
    for _, word in SPLITS:
        names, rows = [n for n, _ in asked.get(word, [])], [r for _, r in asked.get(word, [])]
        records = [
            _record(name, question)
            for name, found in zip(names, clip_questions.known(rows, training))
            for question in found
        ]
        records = [record | {"question_id": number} for number, record in enumerate(records)]
        written.append(_text(out / "labels" / "json" / f"avqa-{word}.json", [json.dumps(records, indent=1)]))
    return written


def all_four(out: Path, config: Any) -> list[Path]:
    """The four below ``AVE``, ``LLP``, ``AVS`` and ``AVQA``."""
    makers = (("AVE", ave), ("LLP", llp), ("AVS", avs), ("AVQA", avqa))
    return [path for name, make in makers for path in make(out / name, config)]


WRITERS: dict[str, Callable[[Path, Any], list[Path]]] = {
    "ave": ave,
    "llp": llp,
    "avs": avs,
    "avqa": avqa,
    "audio-visual": all_four,
}
"""Layouts by name."""


def _all(config: Any, draw: Draw) -> Iterator[tuple[str, int, Clips]]:
    """``(split as the layouts call it, index of the first clip, clips)`` in chunks."""
    for split, word in SPLITS:
        count = getattr(config, f"{split}_clips")
        for first in range(0, count, _CHUNK):
            yield word, first, draw(config.seed, split, np.arange(first, min(first + _CHUNK, count)))


def _name(word: str, index: int) -> str:
    """Eleven characters, as the names of the real videos have."""
    return f"mw{word[:2]}{index:07d}"


def _record(video: str, question: clip_questions.Question) -> dict[str, Any]:
    return {
        "video_id": video,
        "question_id": 0,
        "type": json.dumps([question.modality, question.kind]),
        "question_content": question.text,
        "templ_values": json.dumps(list(question.values)),
        "question_deleted": 0,
        "anser": question.answer,
    }


def _prepared(out: Path, some: Clips, word: str, first: int, size: int) -> list[Path]:
    """``frames/<id>/00000001.jpg ...``, ``wave/<id>.npy`` and ``audio/<id>.wav``."""
    pictures, waves, written = clips.frames(some, size), clips.waves(some), []
    for i in range(len(some)):
        name = _name(word, first + i)
        for second in range(some.seconds):
            picture = Image.fromarray(pictures[i, second])
            written.append(_image(out / "frames" / name / f"{second + 1:08d}.jpg", picture))
        written.append(_npy(out / "wave" / f"{name}.npy", waves[i]))
        written.append(sound.write_wav(out / "audio" / f"{name}.wav", waves[i]))
    return written


def _image(path: Path, picture: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # JPEG's color subsampling would wash out objects of a few pixels.
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}
    picture.save(path, **options)
    return path


def _npy(path: Path, wave: sound.Wave) -> Path:
    """Half precision: a quarter of the published files' size, and 60 dB below the sound."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, wave.astype(np.float16))
    return path


def _text(path: Path, lines: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _h5(path: Path, key: str, array: np.ndarray) -> Path:
    from perdure.errors import MissingExtra

    try:
        import h5py
    except ImportError:
        raise MissingExtra(
            "AVE's files are HDF5, which needs h5py", todo='Type: pip install "perdure[video]"'
        ) from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file[key] = array
    return path
