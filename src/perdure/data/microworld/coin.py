"""Microworld as a CoIN tree: eight tasks' training conversations and test questions, as the real reader reads them.

``annotations/<task>/{train,test}.json``, pictures in CoIN's folders, the reference answers of ScienceQA, TextVQA and
GQA in their own files, and ``microworld_scenes.json``, which says what each picture shows (for `scene_chat`).

Knows records, files and boxes. Does not know what is asked (`questions`).
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perdure.data.microworld import render, scenes, styles
from perdure.data.microworld.questions import TASKS, Question, TaskOfCoin

SCENES_FILE = "microworld_scenes.json"
CUT = 4
"""Rows that are cut off every fourth picture of Grounding, where no object is: not all pictures are square."""
SHARES = (0.5, 0.35, 0.15)
"""Of scenes with one, two and three objects."""
SEVERITY = 2

Seen = dict[str, Any]
"""What a picture shows, ready for JSON: objects in canonical words, each with its box in the padded square."""


def write(out: Path, config: Any) -> list[Path]:
    """Write the tree of a `microworld.Config` below `out`; returns the files."""
    written: list[Path] = []
    shown: dict[str, Seen] = {}
    for task in TASKS:
        for split in ("train", "test"):
            written += _write_split(out, task, split, config, shown)
    written.append(_json(out / SCENES_FILE, shown))
    return written


def _write_split(out: Path, task: TaskOfCoin, split: str, config: Any, shown: dict[str, Seen]) -> list[Path]:
    count = config.train_questions if split == "train" else config.test_questions
    asked = _asked(task, split, count, config)
    written: list[Path] = []
    records = []
    for number, (question, picture, seen, path) in enumerate(asked):
        image = path if question.has_image else None
        if image is not None and image not in shown:
            shown[image] = seen
            target = out / image
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(target)
            written.append(target)
        identity = f"{split}_{number:06d}"
        make = _training_record if split == "train" else _test_record
        records.append(make(identity, question, image, seen))
    written.append(_json(out / "annotations" / task.name / f"{split}.json", records))
    if split == "test" and task.name in _ANSWERS:
        found = _ANSWERS[task.name]([(r, q) for r, (q, *_) in zip(records, asked)])
        written += [_json(out / name, content) for name, content in found.items()]
    return written


def _asked(task: TaskOfCoin, split: str, count: int, config: Any) -> list[tuple[Question, np.ndarray, Seen, str]]:
    """``count`` questions: each with its picture, what that shows, and its path."""
    pictures = -(-count // task.per_image)
    world = _world(task, f"coin/{task.name}/{split}", pictures, config.seed)
    drawn = _pictures(task, world, config.image_size)
    boxes = render.boxes(render.masks(world, config.image_size))
    folder = f"{task.images or task.name}/{split}"
    found = []
    for i in range(pictures):
        draw = random.Random(int(world.key[i]))
        objects = world.objects(i)
        picture, seen = _framed(drawn[i], objects, boxes[i], cut=task.name == "Grounding" and i % 4 == 0)
        for _ in range(task.per_image):
            question = task.ask(objects, draw)
            found.append((question, picture, seen, f"{folder}/{task.name.lower()}_{i:06d}.png"))
    return found[:count]


def _world(task: TaskOfCoin, split: str, count: int, seed: int) -> scenes.Scenes:
    index = np.arange(count)
    if task.name == "ImageNet":
        return scenes.of_classes(seed, split, index, index % len(scenes.CLASSES))
    return scenes.of_anything(seed, split, index, shares=SHARES)


def _pictures(task: TaskOfCoin, world: scenes.Scenes, size: int) -> np.ndarray:
    """Each picture in one of the task's styles, by turns."""
    found = np.zeros((len(world), size, size, 3), np.uint8)
    for i, style in enumerate(task.styles):
        rows = np.arange(i, len(world), len(task.styles))
        if len(rows):
            found[rows] = styles.pictures(world.select(rows), style, SEVERITY, size)
    return found


def _framed(picture: np.ndarray, objects: list[scenes.Object], boxes: np.ndarray, *, cut: bool) -> tuple[Any, Seen]:
    """The picture, some rows cut off if asked for, and what it shows with boxes in its padded square."""
    side, top, rows = picture.shape[0], 0, 0
    own = boxes[: len(objects)]
    if cut and own[:, 1].min() >= CUT:
        top = rows = CUT
    elif cut and own[:, 3].max() <= side - CUT:
        rows = CUT
    picture = picture[top : top + side - rows]
    # Padding puts half of what is missing on top, an odd row below.
    shift = rows // 2 - top
    found = []
    for thing, (left, upper, right, lower) in zip(objects, own):
        box = [left / side, (upper + shift) / side, right / side, (lower + shift) / side]
        found.append({**asdict(thing), "box": [round(float(v), 2) for v in box]})
    return picture, {"size": [picture.shape[1], picture.shape[0]], "objects": found}


def box_text(box: list[float]) -> str:
    """``[0.25, 0.10, 0.50, 0.40]``."""
    return f"[{', '.join(f'{v:.2f}' for v in box)}]"


def _answer(question: Question, seen: Seen) -> str:
    """The answer in words; of Grounding, the box."""
    if "object" in question.facts:
        return box_text(seen["objects"][question.facts["object"]]["box"])
    return question.answer


def _training_record(identity: str, question: Question, image: str | None, seen: Seen) -> dict[str, Any]:
    mark = "<image>\n" if image else ""
    said = [{"from": "human", "value": mark + question.text}, {"from": "gpt", "value": _answer(question, seen)}]
    return {"id": identity, **({"image": image} if image else {}), "conversations": said}


def _test_record(identity: str, question: Question, image: str | None, seen: Seen) -> dict[str, Any]:
    record: dict[str, Any] = {"question_id": identity, **({"image": image} if image else {}), "text": question.text}
    if "object" in question.facts:
        return record | {"answer_bbox": _answer(question, seen), "size": seen["size"]}
    return record | {"answer": question.answer}


def _science_files(rows: list[tuple[dict[str, Any], Question]]) -> dict[str, Any]:
    problems = {
        r["question_id"]: {
            "question": q.facts["stem"],
            "choices": q.facts["choices"],
            "answer": "ABCD".index(q.answer),
            "image": "image.png" if q.has_image else None,
            "split": "test",
        }
        for r, q in rows
    }
    return {"ScienceQA/problems.json": problems, "ScienceQA/pid_splits.json": {"test": list(problems)}}


def _text_files(rows: list[tuple[dict[str, Any], Question]]) -> dict[str, Any]:
    data = [{"question_id": r["question_id"], "question": q.text, "answers": q.facts["answers"]} for r, q in rows]
    return {"TextVQA/TextVQA_0.5.1_val.json": {"data": data}}


def _gqa_files(rows: list[tuple[dict[str, Any], Question]]) -> dict[str, Any]:
    found = {
        r["question_id"]: {
            "question": q.text.split("\n")[0],
            "answer": q.answer,
            "isBalanced": True,
            "types": q.facts["types"],
            "semantic": q.facts["semantic"],
            "groups": {"global": None, "local": None},
        }
        for r, q in rows
    }
    return {"GQA/testdev_balanced_questions.json": found}


_ANSWERS = {"ScienceQA": _science_files, "TextVQA": _text_files, "GQA": _gqa_files}
"""Reference answers that lie in files of their own."""


def _json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
