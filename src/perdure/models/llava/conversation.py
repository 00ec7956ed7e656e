"""Vicuna's conversation template, its tokens and the mask of labels, as LLaVA-1.5 was trained.

Knows texts and token ids. Knows no images (only where one stands) and no models. A tokenizer is a function
``text -> ids`` that puts the BOS token first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from perdure.errors import DataError
from perdure.models.language_model import IGNORE

Encode = Callable[[str], Sequence[int]]
Message = Mapping[str, str]

IMAGE = "<image>"
IMAGE_ID = -200
"""Stands for the image in token ids; no vocabulary has it."""
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
END = "</s>"
ANSWER = " ASSISTANT: "
_ROLES = {"human": "USER", "gpt": "ASSISTANT"}


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A conversation as tokens."""

    input_ids: list[int]
    labels: list[int]
    """The ids to be learned, `IGNORE` elsewhere."""
    mismatch: bool
    """The answers' tokens could not be placed (an answer is empty or holds a separator): all is ignored."""


def encode_conversation(
    messages: Sequence[Message],
    encode: Encode,
    *,
    has_image: bool,
    max_length: int = 2048,
    legacy: bool = True,
    pad_id: int = 0,
) -> Encoded:
    """Tokens and labels of a training conversation: only answers and their end marks are learned.

    Texts alone are cut at `max_length`; with an image nothing is cut here, for the image's tokens are still
    to come. `legacy=False` is for Llama tokenizers that put no space after special tokens.
    """
    if has_image:
        messages = image_first(messages)
    prompt = conversation_text(messages)
    if has_image:
        ids = encode_with_image(prompt, encode)
    else:
        ids = list(encode(prompt))[:max_length]
    count = (lambda text: len(encode_with_image(text, encode))) if has_image else (lambda t: len(encode(t)))
    labels, end = _answer_labels(prompt, ids, count, legacy)
    mismatch = end < max_length and end != sum(i != pad_id for i in ids)
    if mismatch:
        labels = [IGNORE] * len(ids)
    return Encoded(input_ids=ids, labels=labels, mismatch=mismatch)


def encode_question(question: str, encode: Encode, *, has_image: bool) -> list[int]:
    """Tokens of a question that waits for its answer; the image, if any, comes first."""
    text = f"{IMAGE}\n{question}" if has_image else question
    prompt = question_text(text)
    return encode_with_image(prompt, encode) if has_image else list(encode(prompt))


def conversation_text(messages: Sequence[Message]) -> str:
    """A whole conversation in the template. A first message of the assistant is left out.

    Raises DataError for an unknown role or two messages of one role in a row.
    """
    if messages and messages[0]["from"] == "gpt":
        messages = messages[1:]
    text = SYSTEM + " "
    for i, message in enumerate(messages):
        role, value = message["from"], message["value"]
        if role != ("human", "gpt")[i % 2]:
            raise DataError(f"message {i} is from {role!r}", expected="'human' and 'gpt' in turn, 'human' first")
        text += f"{_ROLES[role]}: {value}{(' ', END)[i % 2]}" if value else f"{_ROLES[role]}:"
    return text


def question_text(question: str) -> str:
    """A question in the template, up to where the answer begins."""
    return f"{SYSTEM} USER: {question} ASSISTANT:"


def question_start() -> str:
    """What every question in the template begins with, with or without an image."""
    return f"{SYSTEM} USER:"


def image_first(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages whose image mark stands alone on their first line, wherever it was."""
    moved = []
    for message in messages:
        value = message["value"]
        if IMAGE in value:
            value = f"{IMAGE}\n{value.replace(IMAGE, '').strip()}".strip()
        moved.append({**message, "value": value})
    return moved


def encode_with_image(prompt: str, encode: Encode) -> list[int]:
    """Token ids with `IMAGE_ID` for each image mark; the text on either side is encoded apart, one BOS is kept."""
    parts = [list(encode(part)) for part in prompt.split(IMAGE)]
    ids = parts[0]
    for part in parts[1:]:
        ids = [*ids, IMAGE_ID, *part[1:]]
    return ids


def word_count(messages: Sequence[Message], *, has_image: bool) -> int:
    """The length by which batches are grouped: words of all messages, negative without an image."""
    words = max(1, sum(len(message["value"].split()) for message in messages))
    return words if has_image else -words


def _answer_labels(prompt: str, ids: Sequence[int], count: Callable[[str], int], legacy: bool) -> tuple[list[int], int]:
    """Labels, and how many tokens the rounds take together.

    The lengths are counted on each round alone, so 2 is taken off for its BOS and for the last space of
    the question, which is a token of its own only at the end of a text.
    """
    labels = list(ids)
    labels[0] = IGNORE
    end = 1
    for i, turn in enumerate(prompt.split(END)):
        parts = turn.split(ANSWER)
        if not turn or len(parts) != 2:
            break
        length, asked = count(turn), count(parts[0] + ANSWER) - 2
        if i > 0 and not legacy:
            length, asked = length - 1, asked - 1
        labels[end : end + asked] = [IGNORE] * len(labels[end : end + asked])
        end += length
    labels[end:] = [IGNORE] * len(labels[end:])
    return labels, end
