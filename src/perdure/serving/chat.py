"""``/v1/chat/completions``: a question about a picture in OpenAI's form, for programs that speak it already.

Knows the form of requests, answers, errors and server-sent events. What a run cannot do (sampling, tools, a system
message; where its model answers single questions, several turns and images) is refused, never ignored. Follows no
address: images come as data URLs.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from perdure.serving import asked as asking
from perdure.serving.asked import Input, Limits

ONE_ONLY = {"n": 1, "temperature": 0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "logprobs": False}
"""What may be said, if it says what is done anyway: one answer, the most likely."""
SILENT = ("user", "store", "metadata", "seed", "stream_options", "service_tier", "safety_identifier")
"""What changes no answer."""
KNOWN = ("model", "messages", "max_tokens", "max_completion_tokens", "stream", *ONE_ONLY, *SILENT)


@dataclass
class Chat:
    """A request."""

    input: Input
    model: str = ""
    """As it was named."""
    most: int | None = None
    """Tokens that an answer may have."""
    stream: bool = False


class Refused(HTTPException):
    """An error in OpenAI's form."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    @classmethod
    def of(cls, error: HTTPException) -> Refused:
        """Another error in this form."""
        return error if isinstance(error, cls) else cls(error.status_code, str(error.detail))


async def read(request: Request, limits: Limits) -> Chat:
    """The question of a request, with what was said before it.

    Raises:
        Refused: malformed, or something that is not done here.
        HTTPException: too large or too slow.
    """
    content = await asking.read_json(request, limits)
    if not isinstance(content, dict):
        raise Refused(400, "expected a JSON object with `messages`")
    if unknown := sorted(content.keys() - set(KNOWN)):
        raise Refused(400, f"`{unknown[0]}` is not done here", param=unknown[0])
    for name, value in ONE_ONLY.items():
        if content.get(name) is not None and content[name] != value:
            raise Refused(400, f"`{name}` can only be {json.dumps(value)}: one answer, the most likely", param=name)
    most = content.get("max_completion_tokens", content.get("max_tokens"))
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or not 0 < most < 10**6):
        raise Refused(400, "`max_tokens` is no number from 1", param="max_tokens")
    model, stream = content.get("model") or "", content.get("stream") or False
    if not isinstance(model, str) or not isinstance(stream, bool):
        raise Refused(400, "`model` is no text, or `stream` not true or false")
    return Chat(_conversation(content.get("messages")), model, most, stream)


def require_single(asked: Chat) -> None:
    """Refuse a conversation, for a run that answers single questions about one image."""
    if asked.input.said:
        what = "one message of the user: this run answers single questions, without earlier turns"
        raise Refused(400, f"expected {what}", param="messages")
    if asked.input.more:
        raise Refused(400, f"{len(asked.input.images)} images; a question is about one", param="messages")


def _conversation(messages: Any) -> Input:
    """Texts and images of a conversation that ends with a question.

    Of one question about one image the text is as it was sent; else it says where each image stands.
    """
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise Refused(400, "expected a list of messages", param="messages")
    roles = [message.get("role") for message in messages]
    if roles != [("user", "assistant")[i % 2] for i in range(len(roles))] or roles[-1] != "user":
        what = "one message of the user, or turns of user and assistant that end with the user's: no system message"
        raise Refused(400, f"expected {what}", param="messages")
    turns = [_parts(message.get("content")) for message in messages]
    images = [value for turn in turns for kind, value in turn if kind == "image"]
    texts = [_text(turn, marks=len(turns) > 1 or len(images) > 1) for turn in turns]
    if not all(text.replace("<image>", "").strip() for text in texts):
        raise Refused(400, "there is no question", param="messages")
    found = asking.decoded({"text": texts[-1]} | ({"image": images[0]} if images else {}))
    found.more = tuple(asking.decoded({"text": "", "image": image}).image or b"" for image in images[1:])
    found.said = tuple(zip(("human", "gpt") * len(texts), [asking.decoded({"text": t}).text for t in texts[:-1]]))
    return found


def _parts(content: Any) -> list[tuple[str, str]]:
    """(`text` or `image`, what it is) of a message's parts."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise Refused(400, "`content` is no text and no list of parts", param="messages")
    found = []
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                found.append(("text", text))
            case {"type": "image_url", "image_url": {"url": str(url)}}:
                if not url.startswith("data:"):
                    raise Refused(400, "addresses are not followed: send the image as a data URL", param="messages")
                found.append(("image", url))
            case _:
                raise Refused(400, "a part is neither a text nor an image_url", param="messages")
    return found


def _text(parts: list[tuple[str, str]], *, marks: bool) -> str:
    return "\n".join("<image>" if kind == "image" else text for kind, text in parts if marks or kind == "text").strip()


def cut(answer: str, most: int | None, tokenizer: Any) -> tuple[str, str]:
    """The answer with at most so many tokens, and why it ends."""
    if most is None or tokenizer is None:
        return answer, "stop"
    tokens = tokenizer.encode(answer, add_special_tokens=False)
    if len(tokens) <= most:
        return answer, "stop"
    return tokenizer.decode(tokens[:most], skip_special_tokens=True), "length"


def completion(answer: str, ending: str, *, model: str) -> dict[str, Any]:
    """The answer in OpenAI's form; tokens are not counted."""
    message = {"role": "assistant", "content": answer, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": ending}
    return _head("chat.completion", model) | {"choices": [choice]}


async def events(answer: str, ending: str, *, model: str) -> AsyncIterator[str]:
    """The same as server-sent events; the answer is sent whole."""
    head = _head("chat.completion.chunk", model)
    for delta, why in (({"role": "assistant", "content": answer}, None), ({}, ending)):
        chunk: Mapping[str, Any] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": why}
        yield f"data: {json.dumps(head | {'choices': [chunk]}, ensure_ascii=False)}\n\n"
    yield "data: [DONE]\n\n"


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}
