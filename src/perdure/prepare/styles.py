"""The five styles of an answer, and what becomes of a training record in each.

Knows one record at a time, the sentence that asks for each style, and the conversions that need no model. Randomness
comes in as a `random.Random`. The rules are perdure's reading of SEFE (arXiv 2505.02486); so are the sentences for
`yn`, `brief` and `detail`, which upstream did not publish.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from perdure.metrics.vqa import box_iou, parse_box

Style = Literal["yn", "mcq", "short", "brief", "detail"]
STYLES: tuple[Style, ...] = ("yn", "mcq", "short", "brief", "detail")
REQUESTS: dict[str, str] = {
    "yn": "Answer with yes or no.",
    "mcq": "Answer with the option's letter from the given choices directly.",
    "short": "Answer the question using a single word or phrase.",
    "brief": "Explain the answer briefly, in about 20 words.",
    "detail": "Explain the answer in detail, in about 50 words.",
}
"""The sentence under a question that asks for a style; those of `mcq` and `short` are CoIN's own."""
DESCRIBE = {
    "brief": "Describe the object inside the box {box} briefly, in about 20 words.",
    "detail": "Describe the object inside the box {box} in detail, in about 50 words.",
}
LETTERS = "ABCD"


@dataclass(frozen=True, kw_only=True)
class QuestionKind:
    """How the records of a task are converted."""

    native: Style
    """The style that they come in."""
    by_rule: frozenset[str]
    """Styles that need no model."""
    prompts: str
    """Which prompts of `perdure.prepare.prompts` ask a model for the others."""
    batched: bool = False
    """Several questions of one image go into one request."""


KINDS: dict[str, QuestionKind] = {
    "choice": QuestionKind(native="mcq", by_rule=frozenset({"yn", "short"}), prompts="choice"),
    "text_in_image": QuestionKind(native="short", by_rule=frozenset(), prompts="text_in_image"),
    "category": QuestionKind(native="short", by_rule=frozenset({"yn", "mcq"}), prompts="category"),
    "questions": QuestionKind(native="short", by_rule=frozenset(), prompts="questions", batched=True),
    "question": QuestionKind(native="short", by_rule=frozenset(), prompts="question"),
    "box": QuestionKind(native="short", by_rule=frozenset({"yn", "mcq"}), prompts="box"),
    "cover": QuestionKind(native="short", by_rule=frozenset(), prompts="cover", batched=True),
}
"""Kinds of tasks, for CoIN's eight and for data of one's own."""
COIN_KINDS = {
    "ScienceQA": "choice",
    "TextVQA": "text_in_image",
    "ImageNet": "category",
    "GQA": "questions",
    "VizWiz": "question",
    "Grounding": "box",
    "VQAv2": "questions",
    "OCRVQA": "cover",
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a record asks and answers, without image mark and style request."""

    question: str
    answer: str
    choices: tuple[str, ...] = ()
    """Texts of the options of a multiple-choice question."""

    @property
    def answer_text(self) -> str:
        """The answer in words: of a letter, its option's."""
        if self.choices and self.answer in LETTERS + "E":
            return self.choices["ABCDE".index(self.answer)]
        return self.answer


def asked(record: Mapping[str, Any]) -> Asked | None:
    """Question and answer of a record of one round; None for longer conversations, or letters without options."""
    messages = record["conversations"]
    if messages[0]["from"] == "gpt":
        messages = messages[1:]
    if len(messages) != 2:
        return None
    lines = messages[0]["value"].replace("<image>", "").strip().split("\n")
    lines = [line for line in lines if line.strip() not in REQUESTS.values()]
    choices = [found[1] for line in lines if (found := re.match(r"[A-E]\. (.*)", line))]
    stem = [line for line in lines if not re.match(r"[A-E]\. ", line)] if choices else lines
    answer = messages[1]["value"].strip()
    if choices and ("ABCDE".find(answer) not in range(len(choices)) or len(answer) != 1):
        return None
    return Asked(question="\n".join(stem).strip(), answer=answer, choices=tuple(choices))


def is_yes_no(said: Asked) -> bool:
    """Whether the record is a yes/no question by itself."""
    return said.answer.strip().rstrip(".").lower() in ("yes", "no")


def rewritten(record: Mapping[str, Any], question: str, answer: str) -> dict[str, Any]:
    """The record with another question and answer; its image and all other fields stay."""
    mark = "<image>\n" if record.get("image") is not None else ""
    said = [{"from": "human", "value": mark + question}, {"from": "gpt", "value": answer}]
    return {**record, "conversations": said}


def yes_no(record: Mapping[str, Any], said: Asked, distractor: str, draw: random.Random) -> dict[str, Any]:
    """Is the answer this? The right one and a wrong one come with equal probability."""
    right = draw.random() < 0.5
    candidate = said.answer_text if right else distractor
    question = f"{said.question}\nIs the answer {candidate}?\n{REQUESTS['yn']}"
    return rewritten(record, question, "Yes" if right else "No")


def multiple_choice(
    record: Mapping[str, Any], said: Asked, distractors: Sequence[str], draw: random.Random
) -> dict[str, Any]:
    """The answer among three wrong ones, shuffled under A to D."""
    options = [said.answer_text, *distractors]
    draw.shuffle(options)
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options))
    letter = LETTERS[options.index(said.answer_text)]
    return rewritten(record, f"{said.question}\n{listed}\n{REQUESTS['mcq']}", letter)


def short(record: Mapping[str, Any], said: Asked) -> dict[str, Any]:
    """The option's text for its letter."""
    return rewritten(record, f"{said.question}\n{REQUESTS['short']}", said.answer_text)


def explained(record: Mapping[str, Any], said: Asked, style: str, kind: str, text: str) -> dict[str, Any]:
    """An explanation for the answer; for a box, the box goes into the question and its description is the answer."""
    if kind == "box":
        return rewritten(record, DESCRIBE[style].format(box=said.answer), text)
    options = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCDE", said.choices))
    return rewritten(record, f"{said.question}{options}\n{REQUESTS[style]}", text)


def rule_distractors(
    kind: str, said: Asked, count: int, draw: random.Random, *, categories: Sequence[str]
) -> list[str] | None:
    """Wrong answers that need no model: other options, other categories, other boxes. None if there are too few."""
    if kind == "choice":
        others = [c for c in said.choices if c != said.answer_text]
    elif kind == "category":
        others = [c for c in categories if c.lower() != said.answer.lower()]
    else:
        return other_boxes(said.answer, count, draw)
    return draw.sample(others, count) if len(others) >= count else None


def other_boxes(box: str, count: int, draw: random.Random) -> list[str] | None:
    """Boxes of like size elsewhere, that overlap the true one by less than half; in its notation."""
    true = parse_box(box)
    if true is None:
        return None
    comma = ", " if ", " in box else ","
    found: list[str] = []
    for _ in range(200):
        width = min(1.0, (true[2] - true[0]) * draw.uniform(0.6, 1.6))
        height = min(1.0, (true[3] - true[1]) * draw.uniform(0.6, 1.6))
        x, y = draw.uniform(0, 1 - width), draw.uniform(0, 1 - height)
        other = [round(v, 2) for v in (x, y, x + width, y + height)]
        text = f"[{comma.join(f'{v:.2f}' for v in other)}]"
        if other[0] < other[2] and other[1] < other[3] and box_iou(other, true) < 0.5 and text not in found:
            found.append(text)
        if len(found) == count:
            return found
    return None
