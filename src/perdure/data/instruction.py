"""Instruction data in LLaVA's JSON: conversations to learn from, questions to test with.

Knows the records' layout and every way in which they can be wrong; a fault names its file and record. Does
not know tokens, models or the order of tasks.

Training: ``{"id", "image"?, "conversations": [{"from": "human" | "gpt", "value"}, ...]}``, ``<image>`` in the first
human message. Test: ``{"question_id", "image"?, "text", "answer"}``, or ``"answer_bbox"`` and ``"size"`` for boxes.
``image`` is a path or a list of paths, with as many ``<image>`` marks. Instead of it ``video``: a video file, a folder
of frames or a list of frames, with one mark ``<video>``, or none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perdure.errors import DataError
from perdure.files.text_files import read_json
from perdure.metrics.answer_format import TASK_FORMS
from perdure.metrics.stream_scorers import science_target
from perdure.metrics.vqa import parse_box, true_box
from perdure.metrics.vqa_files import caption_references, read_annotations
from perdure.types import NO_EXAMPLES, Dataset, Example, Examples

Scorer = Literal[
    "scienceqa",
    "textvqa",
    "imagenet",
    "gqa",
    "vizwiz",
    "grounding",
    "vqav2",
    "ocrvqa",
    "exact",
    "equal",
    "contains",
    "contains_word",
    "science",
    "loose_letter",
    "squeezed",
    "ocrbench",
    "caption",
]
Form = Literal["letter", "yes_no", "phrase", "title", "box", "explanation", "any"]
SEPARATORS = (" ASSISTANT: ", "</s>")
"""Texts of the conversation template: an answer that holds one cannot be told from what follows it."""
LETTER_REQUEST = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True, kw_only=True)
class Config:
    """One task's files."""

    name: str = "instruction"
    """What the task is called."""
    train: Path | None = None
    """Training conversations."""
    test: Path | None = None
    """Test questions."""
    images: Path = Path(".")
    """Folder that the records' image paths start from."""
    test_images: Path | None = None
    """The same for test records; none: `images`."""
    answers: Path | None = None
    """Reference answers where the test file has none or other ones: TextVQA's or GQA's question file, the
    ScienceQA folder with `problems.json` and `pid_splits.json`, or captions in COCO's form."""
    scorer: Scorer = "exact"
    """How an answer is compared with its reference."""
    form: Form | None = None
    """The form that the questions ask for; none: that of the scorer's task."""
    official: bool = False
    """Repeat the published scorers with their defects."""
    on_fault: Literal["stop", "skip"] = "stop"
    """Stop and report all faulty records at once, or leave them out and count them."""
    check_images: bool = True
    """See whether every image file is there before any work starts."""


def read(config: Config) -> Dataset:
    """The task's conversations and questions.

    Raises DataError that names file and record of every fault (the first twenty).
    """
    reader = _Reader(config)
    train = reader.training(config.train) if config.train else NO_EXAMPLES
    test = reader.questions(config.test) if config.test else NO_EXAMPLES
    return Dataset(
        name=config.name,
        kind="instruct",
        train=train,
        test=test,
        facts={"train": len(train), "test": len(test), "left_out": reader.left_out, "scorer": config.scorer},
    )


def files(config: Config) -> list[Path]:
    """The files that a complete copy has, images apart."""
    return [path for path in (config.train, config.test, config.answers) if path is not None]


def conversation(name: str, question: str, answer: str, image: Any = None) -> Example:
    """A training example of one question and its answer. `image`: whatever `perdure.images.open_image` takes."""
    mark = "" if image is None else "<image>\n"
    said = [{"from": "human", "value": f"{mark}{question}"}, {"from": "gpt", "value": answer}]
    return Example(
        id=name, inputs={"conversations": said, **({} if image is None else {"image": image})}, target=answer
    )


def question(name: str, text: str, answer: str, image: Any = None) -> Example:
    """A test example of one question and its reference, to be met exactly."""
    target = {"answer": answer, "scorer": "exact", "form": "any", "official": False}
    return Example(id=name, inputs={"text": text, **({} if image is None else {"image": image})}, target=target)


def training_names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each training record, by what it is about and not by its place: the same in a file that is shuffled,
    and after its style was changed (`prepare asd`), which leaves a record's id and image as they are.

    The record's id; where that is not one record's own, as in LLaVA's files, with a digest of its image; where that is
    not either, of the question's first line too; last, a number.
    """
    own = [str(record.get("id", record.get("question_id", ""))) for record in records]
    images = [json.dumps(record.get("image") or record.get("video")) for record in records]
    lines = [_first_line(record) for record in records]
    names = own
    for more in (images, [image + line for image, line in zip(images, lines)]):
        times = Counter(names)
        names = [
            name if times[name] == 1 else f"{start}/{hashlib.sha256(said.encode()).hexdigest()[:16]}"
            for name, start, said in zip(names, own, more)
        ]
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        found.append(f"{name}/{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def _first_line(record: Mapping[str, Any]) -> str:
    asked = next(m["value"] for m in record["conversations"] if m["from"] == "human")
    return asked.replace("<image>", "").replace("<video>", "").strip().split("\n")[0]


def training_fault(record: Any, *, boxes: bool = False) -> str | None:
    """What is wrong with a training record, or None. `boxes`: answers must be boxes within [0, 1]."""
    messages = record.get("conversations") if isinstance(record, Mapping) else None
    if not isinstance(messages, list) or not messages:
        return "'conversations' is missing or empty"
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("value"), str):
            return f"message {i} has no text in 'value'"
        if message.get("from") not in ("human", "gpt"):
            return f"message {i} is from {message.get('from')!r}, neither 'human' nor 'gpt'"
    turns = messages[1:] if messages[0]["from"] == "gpt" else messages
    if len(turns) < 2 or len(turns) % 2 or any(m["from"] != ("human", "gpt")[i % 2] for i, m in enumerate(turns)):
        return "questions ('human') and answers ('gpt') do not alternate"
    for answer in turns[1::2]:
        if fault := _answer_fault(answer["value"], boxes):
            return fault
    if fault := _shown_fault(record):
        return fault
    several = isinstance(record.get("image"), list)
    marks = sum(m["value"].count("<image>") if several else "<image>" in m["value"] for m in turns)
    if marks != (len(record["image"]) if several else record.get("image") is not None):
        said = "marks <image>" if several else "messages say <image>"
        return f"'image' is {record.get('image')!r}, but {marks} {said}"
    return None


def _shown_fault(record: Mapping[str, Any]) -> str | None:
    """What is wrong with a record's image or video, but whether its file is there."""
    if record.get("image") is not None and record.get("video") is not None:
        return "there are an 'image' and a 'video', expected one or the other"
    for name in ("image", "video"):
        value = record.get(name)
        listed = value if isinstance(value, list) else [value]
        if value is not None and not (listed and all(isinstance(one, str) for one in listed)):
            return f"{name!r} is {str(value)[:40]}, expected a path or a list of paths"
    texts = [str(m.get("value", "")) for m in record.get("conversations", ())] or [str(record.get("text", ""))]
    if record.get("video") is None and any(text.strip().startswith("<video>") for text in texts):
        return "'video' is missing, but a message begins with <video>"
    return None


def _answer_fault(answer: str, boxes: bool) -> str | None:
    if not answer.strip():
        return "an answer is empty, expected a text"
    for separator in SEPARATORS:
        if separator in answer:
            return f"an answer holds {separator!r}, which ends it in the conversation template"
    if boxes and (found := parse_box(answer)) and not all(0 <= v <= 1 for v in found):
        return f"the box {answer} is not within [0, 1], expected shares of the padded square's side"
    return None


class _Reader:
    """Reads a task's files, and keeps the faults of each."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.images = config.images
        """Folder of the present file's images."""
        self.left_out = 0
        self._listed: dict[Path, set[str]] = {}

    def training(self, path: Path) -> Examples:
        boxes = self.config.scorer == "grounding"
        records = self._records(path, lambda record: training_fault(record, boxes=boxes))
        named = zip(records, training_names(records))
        return Examples.of([self._training_example(record, name) for record, name in named])

    def questions(self, path: Path) -> Examples:
        config = self.config
        answers = self._answers(config.answers, path) if config.answers else None
        self.images = config.test_images or config.images
        seen: set[str] = set()

        def fault(record: Any) -> str | None:
            return _question_fault(record, config.scorer, answers, seen)

        return Examples.of([self._question(record, answers) for record in self._records(path, fault)])

    def _answers(self, answers: Path, questions: Path) -> Mapping[str, Any]:
        if self.config.scorer != "caption":
            return read_annotations(answers, self.config.scorer)
        records = read_json(Path(questions))
        names = [str(r["question_id"]) for r in records if isinstance(r, Mapping) and "question_id" in r]
        return caption_references(Path(answers), names)

    def _records(self, path: Path, fault: Callable[[Any], str | None]) -> list[Mapping[str, Any]]:
        """The records of a file without the faulty ones, or a DataError that names these."""
        records = read_json(Path(path))
        if not isinstance(records, list):
            raise DataError("this is no list of records", where=str(path))
        sound, faults = [], []
        for i, record in enumerate(records):
            said = fault(record) or self._missing_fault(record)
            if said:
                name = record.get("id", record.get("question_id", "")) if isinstance(record, Mapping) else ""
                faults.append(f"{path}, record {i}{f' ({name})' if name != '' else ''}: {said}")
            else:
                sound.append(record)
        if faults and self.config.on_fault == "stop":
            more = f"\n... and {len(faults) - 20} more" if len(faults) > 20 else ""
            todo = "\nRepair or remove them, or set on_fault=skip."
            if any("which is not under" in fault for fault in faults):
                todo += " Image paths start at `root`: is it the right folder?"
            raise DataError("\n".join(faults[:20]) + more + todo)
        self.left_out += len(faults)
        return sound

    def _training_example(self, record: Mapping[str, Any], name: str) -> Example:
        inputs = {"conversations": [dict(m) for m in record["conversations"]], **self._shown(record)}
        target = record["conversations"][-1]["value"]
        return Example(id=f"{self.config.name}/train/{name}", inputs=inputs, target=target)

    def _question(self, record: Mapping[str, Any], answers: Mapping[str, Any] | None) -> Example:
        config = self.config
        text = record["text"].strip()
        if not isinstance(record.get("image"), list) or text.count("<image>") != len(record["image"]):
            text = text.replace("<image>", "").strip()
        if config.scorer == "scienceqa" and LETTER_REQUEST not in text:
            text = f"{text}\n{LETTER_REQUEST}"
        target = {
            "answer": _reference(record, config.scorer, answers),
            "scorer": config.scorer,
            "form": config.form or TASK_FORMS[config.scorer],
            "official": config.official,
        }
        name = f"{config.name}/test/{record['question_id']}"
        return Example(id=name, inputs={"text": text, **self._shown(record)}, target=target)

    def _shown(self, record: Mapping[str, Any]) -> dict[str, Path | list[Path]]:
        """The image, the images or the video of a record."""
        root, found = Path(self.images), {}
        for name in ("image", "video"):
            value = record.get(name)
            if value is not None:
                found[name] = [root / one for one in value] if isinstance(value, list) else root / value
        return found

    def _missing_fault(self, record: Any) -> str | None:
        if fault := _shown_fault(record):
            return fault
        for name in ("image", "video"):
            value = record.get(name)
            for one in value if isinstance(value, list) else [] if value is None else [value]:
                path = Path(self.images) / one
                if self.config.check_images and path.name not in self._names(path.parent):
                    return f"{name!r} names {one}, which is not under {self.images}"
        return None

    def _names(self, folder: Path) -> set[str]:
        """Names in a folder, listed once."""
        if folder not in self._listed:
            self._listed[folder] = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
        return self._listed[folder]


def _question_fault(record: Any, scorer: str, answers: Mapping[str, Any] | None, seen: set[str]) -> str | None:
    if not isinstance(record, Mapping) or record.get("question_id") is None:
        return "'question_id' is missing"
    name = str(record["question_id"])
    if name in seen:
        return f"question_id {name} occurs twice, expected one question an id"
    seen.add(name)
    if not isinstance(record.get("text"), str) or not record["text"].strip():
        return "'text' is missing or empty"
    if answers is not None:
        return None if name in answers else f"the answers file has no question {name}"
    if record.get("answer_bbox") is None and record.get("answer") in (None, "", []):
        return "'answer' is missing or empty"
    if scorer == "grounding":
        try:
            true_box(record.get("answer_bbox", record.get("answer")))
        except DataError as error:
            return str(error)
    return None


def _reference(record: Mapping[str, Any], scorer: str, answers: Mapping[str, Any] | None) -> Any:
    """The target as the scorer wants it."""
    if answers is not None:
        return answers[str(record["question_id"])]
    if scorer == "grounding":
        return {"box": record.get("answer_bbox", record.get("answer")), "size": record.get("size", [1, 1])}
    if scorer == "scienceqa":
        choices = count_choices(record["text"])
        return {"letter": record["answer"], "choices": choices} if choices else record["answer"]
    if scorer == "science":
        image = record.get("image") or ""
        return science_target(record["answer"], image if isinstance(image, str) else image[0], record["text"])
    if scorer == "ocrbench":
        return {"answers": record["answer"], "type": str(record.get("answer_type", ""))}
    if scorer == "caption" and isinstance(record["answer"], str):
        return [record["answer"]]
    return record["answer"]


def count_choices(question: str) -> int:
    """Lines that begin with an option's letter."""
    return len(re.findall(r"^[A-E]\. ", question, re.M))
