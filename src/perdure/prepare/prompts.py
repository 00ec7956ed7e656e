"""What a model is asked for, to give a record another style: our own wording, one prompt a kind of task and style.

Knows texts with places to fill. Knows no records and no model. `fields` says what the JSON answer must hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WORDS = {"brief": "about 20 words", "detail": "about 50 words"}
MANNER = {"brief": "precise and concise", "detail": "thorough and detailed"}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A request, and the fields that its answer must have."""

    system: str
    user: str
    key: str
    """Field of the answer that is used."""
    count: int = 0
    """Entries of that field, if it is a list."""
    indexed: str = ""
    """Name of the 1-based number, where the answer is a list with one object for each question or box."""
    items: int = 1
    """Objects in the answer, if `indexed`."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question and its answer, as a prompt shows them."""

    question: str
    answer: str
    has_image: bool = True


def prompt(kind: str, style: str, items: Sequence[Item]) -> Prompt:
    """The request for one item, or, for kinds that go in batches, for several of one image."""
    if kind in ("questions", "cover"):
        return _batched(kind, style, items)
    if kind == "box":
        return _boxes(style, items)
    if kind == "category":
        return _category(style, items[0])
    return _single(kind, style, items[0])


def _single(kind: str, style: str, item: Item) -> Prompt:
    about = _subject(kind, item.has_image)
    given = f"Question: {item.question}\nCorrect answer: {item.answer}\n\n"
    if style in WORDS:
        return Prompt(
            system=f"You explain the answers to {about}. Your explanations are {MANNER[style]}.",
            user=f"{given}Write an explanation in {WORDS[style]} that leads to the correct answer and supports it. "
            f"{_evidence(kind, item.has_image)} Stay with what is given, and add nothing that is uncertain.\n"
            'Reply with JSON alone: {"explanation": "..."}',
            key="explanation",
        )
    source = (
        " Take them from the OCR tokens that the question lists where these suit, as the answer would be."
        if kind == "text_in_image"
        else ""
    )
    if style == "mcq":
        return Prompt(
            system=f"You write wrong options for {about}.",
            user=f"{given}Write three wrong answers. Each must be of the same sort as the correct one and look "
            f"plausible, and yet be clearly wrong.{source}\n"
            'Reply with JSON alone: {"distractor_options": ["...", "...", "..."]}',
            key="distractor_options",
            count=3,
        )
    return Prompt(
        system=f"You write one wrong option for {about}.",
        user=f"{given}Write one wrong answer of the same sort as the correct one: plausible, and yet clearly "
        f'wrong.{source}\nReply with JSON alone: {{"distractor_option": "..."}}',
        key="distractor_option",
    )


def _batched(kind: str, style: str, items: Sequence[Item]) -> Prompt:
    about = _subject(kind, True)
    listed = "\n".join(f"{i}. Question: {q.question}\n   Answer: {q.answer}" for i, q in enumerate(items, 1))
    given = f"Questions about the image, with their correct answers:\n{listed}\n\n"
    if style in WORDS:
        task = (
            f"For each, write an explanation in {WORDS[style]} that supports its answer. {_evidence(kind, True)} "
            "Rely on the given questions and answers only, and say which part of the image shows it."
        )
        form = '{"question_index": 1, "question": "...", "answer": "...", "explanation": "..."}'
        system = f"You explain the answers to {about}. Your explanations are {MANNER[style]}."
        key, count = "explanation", 0
    elif style == "mcq":
        task = (
            "For each, write three wrong answers that fit the question and the image and resemble the correct one: "
            "neither so near that they could be right, nor obviously wrong."
        )
        form = (
            '{"question_index": 1, "question": "...", "correct_answer": "...", '
            '"distractor_options": ["...", "...", "..."]}'
        )
        system = f"You write wrong options for {about}."
        key, count = "distractor_options", 3
    else:
        task = "For each, write one wrong answer that resembles the correct one, so that a reader must choose of two."
        form = '{"question_index": 1, "question": "...", "correct_answer": "...", "distractor_option": "..."}'
        system, key, count = f"You write one wrong option for {about}.", "distractor_option", 0
    return Prompt(
        system=system,
        user=f"{given}{task}\nReply with a JSON array alone, one object a question, in their order:\n[{form}, ...]",
        key=key,
        count=count,
        indexed="question_index",
        items=len(items),
    )


def _category(style: str, item: Item) -> Prompt:
    more = " Say also what tells it from similar categories." if style == "detail" else ""
    return Prompt(
        system=f"You explain why an image shows an object of a category. Your explanations are {MANNER[style]}.",
        user=f"The main object is of the ImageNet category: {item.answer}\n\nExplain in {WORDS[style]} which visible "
        f'features show this.{more}\nReply with JSON alone: {{"gt_category": "...", "explanation": "..."}}',
        key="explanation",
    )


def _boxes(style: str, items: Sequence[Item]) -> Prompt:
    listed = "\n".join(f"{i}. {item.answer}" for i, item in enumerate(items, 1))
    return Prompt(
        system=f"You describe objects in given regions of an image. Your descriptions are {MANNER[style]}.",
        user="Boxes as [x1, y1, x2, y2], from the left and the top, the image's width and height being 1:\n"
        f"{listed}\n\nDescribe the object in each box in {WORDS[style]}: what it is, what it looks like, what it does. "
        "Do not repeat the numbers.\nReply with a JSON array alone, one object a box, in their order:\n"
        '[{"target_index": 1, "description": "..."}, ...]',
        key="description",
        indexed="target_index",
        items=len(items),
    )


def _subject(kind: str, has_image: bool) -> str:
    if not has_image:
        return "questions"
    return {
        "text_in_image": "questions about images and the text in them",
        "cover": "questions about images and the text in them, such as covers of books",
        "choice": "science questions that come with an image",
    }.get(kind, "questions about images")


def _evidence(kind: str, has_image: bool) -> str:
    if not has_image:
        return "Use what the question says and common knowledge."
    if kind in ("text_in_image", "cover"):
        return "Cite what is seen, and above all the text that is read in the image."
    return "Cite what is seen in the image."
