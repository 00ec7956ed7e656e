"""A chat model of transformers on this machine: one that reads texts, or one that sees pictures too.

Knows checkpoints, prompts and batches. Does not know what is asked for, or how a pass goes on (`chat`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perdure.errors import UnreadableExample
from perdure.images import open_image
from perdure.prepare.chat import EndpointError, Request

Reply = Callable[[int, str | None, str], None]


@dataclass(kw_only=True)
class LocalChat:
    """Answers greedily, in batches that are padded on the left; an answer does not depend on its batch."""

    name: str
    """Hub id or folder."""
    batch_size: int = 8
    max_new_tokens: int = 256
    device: str = "auto"
    """`auto`: the best there is; or its name."""
    _sees: bool | None = field(default=None, repr=False)
    _loaded: Any = field(default=None, repr=False)

    @property
    def sees(self) -> bool:
        """Whether the checkpoint is one of transformers' image-text-to-text models; read from its config alone."""
        if self._sees is None:
            from transformers import AutoConfig
            from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

            config = self._read(AutoConfig)
            self._sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        return self._sees

    def ask(self, requests: Sequence[Request], reply: Reply) -> None:
        """See `Chat`. A picture that cannot be read, or shown to this model, fails its one request."""
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].user))
        for shown in (True, False):  # not every processor takes texts with and without a picture together
            kind = [i for i in order if (requests[i].image is not None) == shown]
            for start in range(0, len(kind), self.batch_size):
                batch = []
                for i in kind[start : start + self.batch_size]:
                    try:
                        batch.append((i, requests[i], self._picture(requests[i])))
                    except UnreadableExample as error:
                        reply(i, None, str(error))
                if batch:
                    self._reply(batch, reply)

    def _picture(self, request: Request) -> Any:
        if request.image is None:
            return None
        if not self.sees:
            what = f"{self.name} reads texts only; the picture cannot be shown to it"
            raise UnreadableExample(what, where=str(request.image))
        return open_image(request.image)

    def _reply(self, batch: Sequence[tuple[int, Request, Any]], reply: Reply) -> None:
        try:
            inputs = self._inputs(batch)
        except ValueError as error:  # a processor refuses, say, a picture that is one pixel high
            if len(batch) == 1:
                reply(batch[0][0], None, f"the model's processor refuses it ({_first_line(error)})")
            else:
                for one in batch:
                    self._reply([one], reply)
        else:
            for (i, _, _), text in zip(batch, self._generate(inputs)):
                reply(i, text, "")

    def _inputs(self, batch: Sequence[tuple[int, Request, Any]]) -> Mapping[str, Any]:
        processor, model = self._load()
        if not self.sees:
            prompts = [text_prompt(processor, request) for _, request, _ in batch]
            inputs = processor(prompts, return_tensors="pt", padding=True).to(model.device)
            return {n: inputs[n] for n in ("input_ids", "attention_mask")}
        prompts = [picture_prompt(processor, request) for _, request, _ in batch]
        pictures = [[picture] for _, _, picture in batch] if batch[0][2] is not None else None
        bos = processor.tokenizer.bos_token
        begun = bos is not None and prompts[0].startswith(bos)  # by a chat template: not a second time
        more = {"add_special_tokens": False} if begun else {}
        inputs = processor(text=prompts, images=pictures, return_tensors="pt", padding=True, **more)
        return inputs.to(model.device, model.dtype)

    def _generate(self, inputs: Mapping[str, Any]) -> list[str]:
        import torch

        processor, model = self._load()
        tokenizer = getattr(processor, "tokenizer", processor)
        settings = {"max_new_tokens": self.max_new_tokens, "do_sample": False, "num_beams": 1}
        with torch.no_grad():
            out = model.generate(**inputs, **settings, pad_token_id=tokenizer.pad_token_id)
        asked = inputs["input_ids"]
        # Decoders say the question again, encoder-decoders do not.
        again = out.shape[1] >= asked.shape[1] and torch.equal(out[:, : asked.shape[1]], asked)
        return tokenizer.batch_decode(out[:, asked.shape[1] :] if again else out, skip_special_tokens=True)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is not None:
            return self._loaded
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

        from perdure.runtime import devices

        if self.sees:
            processor, kind = self._read(AutoProcessor), AutoModelForImageTextToText
            tokenizer = processor.tokenizer
        else:
            processor = tokenizer = self._read(AutoTokenizer)
            kind = AutoModelForCausalLM
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        device = devices.chosen(self.device, where="--device")
        self._loaded = processor, self._read(kind, dtype="auto").to(device).eval()
        return self._loaded

    def _read(self, kind: Any, **settings: Any) -> Any:
        try:
            return kind.from_pretrained(self.name, **settings)
        except (OSError, ValueError, ImportError) as error:
            raise EndpointError(f"no chat model can be read ({_first_line(error)})", where=self.name) from None


def text_prompt(tokenizer: Any, request: Request) -> str:
    """The request in the tokenizer's chat template, or plainly where it has none."""
    if getattr(tokenizer, "chat_template", None):
        return _templated(tokenizer, request.system, request.user, [])
    return f"{request.system}\n\n{request.user}\n"


def picture_prompt(processor: Any, request: Request) -> str:
    """The request in the processor's chat template, or in LLaVA-1.5's where it has none.

    The mark of a picture occurs once where the request has one, and nowhere else.
    """
    mark = getattr(processor, "image_token", "<image>")
    system, user = (text.replace(mark, "") for text in (request.system, request.user))
    pictures = [] if request.image is None else [{"type": "image"}]
    if getattr(processor, "chat_template", None):
        return _templated(processor, system, user, pictures)
    return f"{system} USER: {mark + chr(10) if pictures else ''}{user} ASSISTANT:"


def _templated(processor: Any, system: str, user: str, pictures: list[dict[str, str]]) -> str:
    """Texts of a processor are parts beside pictures, those of a tokenizer plain."""
    from jinja2 import TemplateError

    def said(text: str, parts: list[dict[str, str]]) -> Any:
        return [*parts, {"type": "text", "text": text}] if hasattr(processor, "image_processor") else text

    settings = {"tokenize": False, "add_generation_prompt": True}
    messages = [{"role": "system", "content": said(system, [])}, {"role": "user", "content": said(user, pictures)}]
    try:
        return processor.apply_chat_template(messages, **settings)
    except TemplateError:  # some know no system's part
        only = [{"role": "user", "content": said(f"{system}\n\n{user}", pictures)}]
        return processor.apply_chat_template(only, **settings)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
