"""Conversations as tokens and pixels, by a checkpoint's own processor and chat template, and what of them is learned.

Learned is what an assistant's message adds to the tokens of all before it with the generation prompt, up to and with
its end mark: a difference of prefixes, exact for every template that writes a turn the same whatever follows it. A
template that does not is refused by name.

Knows messages, processors and token ids. Does not know networks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from perdure.errors import RecipeError, UnreadableExample
from perdure.models.language_model import IGNORE
from perdure.videos import Frames

IMAGE, VIDEO = "<image>", "<video>"
"""Where an image stands in a record's text; where a video does."""
Shown = Sequence[Mapping[str, Any]]
"""Parts of messages that show something: `image_part`, `video_part`."""
MARKS = re.compile(f"{IMAGE}|{VIDEO}")
ROLES = {"human": "user", "gpt": "assistant"}
PROBE = [
    {"role": "user", "content": [{"type": "text", "text": "a"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
    {"role": "user", "content": [{"type": "text", "text": "c"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "d"}]},
]
"""A conversation that shows what a template writes around turns."""
SWITCHES: tuple[Mapping[str, Any], ...] = ({}, {"enable_thinking": False}, {"enable_thinking": True})
"""Variables of templates that open a thought in the generation prompt: the first under which turns stand alone."""
Message = Mapping[str, Any]


class Conversations:
    """Tokens and pixels of one processor.

    Args:
        processor: of transformers, with a chat template.
        name: of the checkpoint, for errors.
        system: a message before all others; empty: what the template says by itself.
        ends: ids that end an answer, as far as they are known; the template's end mark joins them.

    Raises:
        RecipeError: the template writes a turn otherwise when others follow, or no mark at its end.
    """

    def __init__(self, processor: Any, *, name: str, system: str = "", ends: Sequence[int] = ()) -> None:
        self.processor, self.tokenizer, self.name, self.system = processor, processor.tokenizer, name, system
        self.control = tuple(token for token in self.tokenizer.get_added_vocab() if not token.isspace())
        """Texts that are tokens of their own."""
        self.variables: Mapping[str, Any] = {}
        """Of the template."""
        self.escapes = self._escapes()
        """Whether control tokens in a text can be read as text."""
        self.takes_videos = self._takes_videos()
        self.variables = self._stable()
        own = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        self.ends = list(dict.fromkeys([*own, *ends, *self._end_mark()]))
        self.require_end()

    def question(self, said: Sequence[Mapping[str, str]], shown: Shown, where: str) -> dict[str, Tensor]:
        """What the processor makes of a conversation that waits for its last question's answer."""
        return self._processed(self._messages(said, shown, where), asking=True)

    def learned(self, said: Sequence[Mapping[str, str]], shown: Shown, where: str) -> dict[str, Tensor]:
        """What the processor makes of a whole conversation, and ``labels``: its learned ids, `IGNORE` elsewhere.

        Raises:
            UnreadableExample: marks and images differ in number, or an answer holds a control token.
            RecipeError: the template writes some turn otherwise when others follow.
        """
        messages = self._messages(said, shown, where)
        item = self._processed(messages, asking=False)
        ids, whole = item["input_ids"].tolist(), self._ids(messages, asking=False)
        labels = torch.full_like(item["input_ids"], IGNORE)
        for k, message in enumerate(messages):
            if message["role"] == "assistant":
                start, stop = self._span(messages, k, ids, whole)
                stop = self._after_end(ids, start, stop)
                labels[start:stop] = item["input_ids"][start:stop]
        return {**item, "labels": labels}

    def require_end(self) -> None:
        """RecipeError if the template writes no end mark: a model would never learn to stop."""
        before, upto = self._ids(PROBE[:1], asking=True), self._ids(PROBE[:2], asking=False)
        if not set(upto[len(before) :]) & set(self.ends):
            raise self._unfit("writes no mark at the end of an answer, so that no model would learn to stop")

    # -- spans ------------------------------------------------------------------------------------------

    def _span(self, messages: Sequence[Message], k: int, ids: list[int], whole: list[int]) -> tuple[int, int]:
        """First place of the k-th message's learned tokens in `ids`, and the one after its last.

        Without pixels images are one token each. So places are counted from the end where no image follows, and by the
        processor otherwise.
        """
        before, upto = self._ids(messages[:k], asking=True), self._ids(messages[: k + 1], asking=False)
        if whole[: len(before)] != before or whole[: len(upto)] != upto:
            raise self._unfit(f"writes message {k + 1} otherwise when others follow it")
        tail = len(whole) - len(before)
        if not _shows_image(messages[k:]) and ids[-tail:] == whole[len(before) :]:
            return len(ids) - tail, len(ids) - (len(whole) - len(upto))
        first = self._processed(messages[:k], asking=True)["input_ids"].tolist()
        last = self._processed(messages[: k + 1], asking=False)["input_ids"].tolist()
        if ids[: len(first)] != first or ids[: len(last)] != last:
            raise self._unfit(f"writes message {k + 1} otherwise when others follow it")
        return len(first), len(last)

    def _after_end(self, ids: Sequence[int], start: int, stop: int) -> int:
        """The place after the last end mark in a span: a line break that a template writes behind it is not learned."""
        found = [i for i in range(start, stop) if ids[i] in self.ends]
        return found[-1] + 1 if found else stop

    def _stable(self) -> Mapping[str, Any]:
        """The first of `SWITCHES` under which the turns of `PROBE` are the same whatever follows."""
        for self.variables in (one for one in SWITCHES if all(name in self.processor.chat_template for name in one)):
            whole = self._ids(PROBE, asking=False)
            parts = [self._ids(PROBE[:k], asking=k % 2 == 1) for k in range(1, len(PROBE))]
            if all(whole[: len(part)] == part for part in parts):
                return self.variables
        raise self._unfit("writes a turn otherwise when others follow it")

    def _end_mark(self) -> list[int]:
        """The control token that the template writes behind an answer."""
        before, upto = self._ids(PROBE[:1], asking=True), self._ids(PROBE[:2], asking=False)
        control = set(self.tokenizer.get_added_vocab().values())
        return [i for i in upto[len(before) :] if i in control][:1]

    # -- processor --------------------------------------------------------------------------------------

    def _messages(self, said: Sequence[Mapping[str, str]], shown: Shown, where: str) -> list[dict[str, Any]]:
        """Messages in parts: what is shown where the text says so, else first of all."""
        expected = [f"<{part['type']}>" for part in shown]
        known = MARKS if VIDEO in expected else re.compile(IMAGE)  # else it is a word, of HTML say
        marks = [mark for m in said for mark in known.findall(m["value"])]
        if marks not in ([], expected):
            what = f"{len(shown)} images" if VIDEO not in expected else "a video"
            raise UnreadableExample(f"{len(marks)} marks {' '.join(dict.fromkeys(marks))} for {what}", where=where)
        if VIDEO in expected and not self.takes_videos:
            raise self.no_videos(where)
        self._require_plain(said, where)
        pending = list(shown)
        made: list[dict[str, Any]] = []
        for message in said:
            parts: list[Mapping[str, Any]] = []
            if not marks and message["from"] == "human":
                parts, pending = list(pending), []
            first, *others = known.split(message["value"])
            parts += _text(first.strip() if others else first)
            for text in others:
                parts += [pending.pop(0), *_text(text.strip())]
            made.append({"role": ROLES[message["from"]], "content": parts})
        head = [{"role": "system", "content": _text(self.system)}] if self.system else []
        return head + made

    def _require_plain(self, said: Sequence[Mapping[str, str]], where: str) -> None:
        """Answers hold no control tokens; questions may, where they can be read as text."""
        for message in said:
            if self.escapes and message["from"] == "human":
                continue
            text = MARKS.sub("", message["value"])
            if held := next((token for token in self.control if token in text), None):
                what = "an answer" if message["from"] == "gpt" else "a question"
                raise UnreadableExample(
                    f"{what} holds {held!r}, a control token of {self.name}",
                    where=where,
                    todo="Take it out of the record.",
                )

    def no_videos(self, where: str) -> RecipeError:
        """What is said of a video that this processor or its template does not take."""
        return RecipeError(
            f"{where}: {self.name} takes no videos, by its processor or by its chat template",
            where="models.llm",
            expected="a model that does (Qwen-VL, LLaVA-OneVision, InternVL, SmolVLM2), or frames as `image`: a list",
        )

    def _processed(self, messages: Sequence[Message], *, asking: bool) -> dict[str, Tensor]:
        """All that the processor gives for one conversation; ids and what goes with them without the batch axis."""
        options: dict[str, Any] = {"return_tensors": "pt"}  # SmolVLM's takes all for its own where this is empty
        if told := [part["told"] for m in messages for part in m["content"] if part["type"] == "video"]:
            options |= {"do_sample_frames": False, "video_metadata": [told]}
        out = self.processor.apply_chat_template(
            [
                {**m, "content": [{n: v for n, v in part.items() if n != "told"} for part in m["content"]]}
                for m in messages
            ],
            chat_template=self.processor.chat_template,  # SmolVLM's takes another one for videos
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=options,
            add_generation_prompt=asking,
            **self.variables,
            **({"sanitize_control_tokens": True} if self.escapes else {}),
        )
        found = {name: value for name, value in out.items() if isinstance(value, Tensor) and name != "attention_mask"}
        return {name: value[0] if name in TOKENWISE else value for name, value in found.items()}

    def _ids(self, messages: Sequence[Message], *, asking: bool) -> list[int]:
        """Ids in which an image is what the template writes for it."""
        bare = [{**m, "content": [_without_pixels(part) for part in m["content"]]} for m in messages]
        return self.tokenizer.apply_chat_template(
            bare,
            chat_template=self.processor.chat_template,
            tokenize=True,
            return_dict=False,
            add_generation_prompt=asking,
            **self.variables,
            **({"sanitize_control_tokens": True} if self.escapes else {}),
        )

    def _escapes(self) -> bool:
        from PIL import Image

        self.escapes = True
        seen = {"role": "user", "content": [image_part(Image.new("RGB", (64, 64))), *_text("a")]}
        try:
            self._processed([seen], asking=True)
        except (NotImplementedError, TypeError, ValueError):  # not with every tokenizer and processor
            return False
        return True

    def _takes_videos(self) -> bool:
        """Whether a video becomes pixels, and the template says where they are."""
        from PIL import Image

        seen = Frames(images=(Image.new("RGB", (64, 64)),) * 2, places=(0, 1), total=2, rate=1.0)
        try:
            found = self._processed([{"role": "user", "content": [video_part(seen), *_text("a")]}], asking=True)
        except (AttributeError, ImportError, KeyError, NotImplementedError, TypeError, ValueError):
            return False
        return any(name not in TOKENWISE for name in found)

    def _unfit(self, what: str) -> RecipeError:
        return RecipeError(
            f"the chat template of {self.name} {what}",
            where="models.llm.chat_template",
            todo="Give a template of your own: a Jinja file.",
        )


TOKENWISE = ("input_ids", "token_type_ids", "mm_token_type_ids")
"""What a processor gives for each token; all else belongs to images."""


def _shows_image(messages: Sequence[Message]) -> bool:
    return any(part["type"] != "text" for message in messages for part in message["content"])


def image_part(image: Any) -> dict[str, Any]:
    """An image as a part of a message."""
    return {"type": "image", "image": image}


def video_part(seen: Frames) -> dict[str, Any]:
    """A video's frames as a part of a message; ``told``: when they are, as processors ask for it."""
    import numpy as np
    from transformers.video_utils import VideoMetadata

    width, height = seen.images[0].size
    told = VideoMetadata(
        total_num_frames=seen.total,
        fps=seen.rate,
        width=width,
        height=height,
        duration=seen.total / seen.rate,
        frames_indices=list(seen.places),
    )
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in seen.images])).permute(0, 3, 1, 2)
    return {"type": "video", "video": pixels, "told": told}


def _text(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}] if text else []


def _without_pixels(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name in ("type", "text")}
