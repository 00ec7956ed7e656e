"""LLaVA: a Llama that sees through a CLIP tower, as a Hugging Face LlavaForConditionalGeneration.

Needs: 15 GB memory for 7 B parameters in bfloat16.

Knows how to load or assemble a LLaVA, to make tokens and pixels of an example, the loss of answers, and answers.
Does not know tasks, low-rank updates (`adapters`) or what a method adds to the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import RecipeError, UnreadableExample
from perdure.images import open_image
from perdure.models.language_model import AnswerLimits, LanguageModel, images_of, padded
from perdure.models.llava import assemble, processor
from perdure.models.llava.answers import PromptCache, greedy
from perdure.models.llava.conversation import IGNORE, IMAGE_ID, encode_conversation, encode_question, question_start
from perdure.models.llava.images import MEAN, STD, pixels
from perdure.models.llava.tokenizer import is_legacy
from perdure.types import Batch, Example

__all__ = ["Config", "Llava", "load"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole LLaVA in `weights`, or its parts in `llm`, `vision` and `projector`."""

    weights: str | None = None
    """Hub id (`llava-hf/llava-1.5-7b-hf`), folder, or the name of an embedded model (`micro-llava`)."""
    llm: str | None = None
    """Hub id or folder of a Llama (`lmsys/vicuna-7b-v1.5`): the start of SEFE and CoIN."""
    vision: str = "openai/clip-vit-large-patch14-336"
    """Hub id or folder of a CLIP; only for `llm`."""
    projector: str | None = None
    """File of the first stage's projector (`mm_projector.bin` or safetensors); without it, it starts at random."""
    revision: str | None = None
    """Commit, branch or tag on the hub of `weights` or `llm`."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of the weights."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Implementation of attention."""
    legacy_tokenizer: bool | None = None
    """Put a space after special tokens too, as the first Llama tokenizers did; none: as the tokenizer says."""

    def faults(self):
        if (self.weights is None) == (self.llm is None):
            yield "weights", "give either `weights`, or `llm` with `vision` and `projector`"


def load(config: Config) -> Llava:
    """The LLaVA that `config` names, frozen, in evaluation mode, on the CPU.

    Raises:
        WeightsError: nothing there, or parts that do not fit.
        RecipeError: neither or both of `weights` and `llm`.
    """
    return _made(config, with_weights=True)


def without_weights(config: Config) -> Llava:
    """The same without weights: its tokens can be looked at."""
    return _made(config, with_weights=False)


def _made(config: Config, *, with_weights: bool) -> Llava:
    for name, what in config.faults():
        raise RecipeError(what, where=f"llava.{name}")
    how: dict[str, Any] = {"revision": config.revision, "legacy": config.legacy_tokenizer, "with_weights": with_weights}
    how["dtype"] = getattr(torch, config.dtype)
    if config.weights is not None:
        model, tokenizer = assemble.whole(config.weights, **how)
    else:
        assert config.llm is not None
        model, tokenizer = assemble.parts(config.llm, config.vision, config.projector, **how)
    model.set_attn_implementation(config.attention)
    llava = Llava(model, tokenizer)
    seen = {"revision": config.revision} if config.weights else {}
    llava.mean, llava.std = assemble.pixel_statistics(config.weights or config.vision, **seen)
    return llava


class Llava(LanguageModel):
    """A LlavaForConditionalGeneration in `model`, with its tokenizer.

    Args:
        model: any LLaVA-1.5: CLIP's patch features, a two-layer projector, a causal language model.
        tokenizer: a Hugging Face tokenizer, or any ``text -> .input_ids`` with `decode`.
        max_length: tokens of a training conversation, the image's included.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int = 2048) -> None:
        super().__init__(model, tokenizer, max_length=max_length)
        config = model.config
        self.image_token: int = config.image_token_id
        self.image_tokens = {self.image_token}
        rows = model.get_input_embeddings().weight.shape[0]
        # Rows from the image token on belong to no text: a softmax over them would change the loss.
        own = getattr(tokenizer, "vocab_size", rows)
        self.vocabulary: int = self.image_token if self.image_token >= own else rows
        self.image_size: int = config.vision_config.image_size
        self.patches: int = (self.image_size // config.vision_config.patch_size) ** 2
        self.legacy = is_legacy(tokenizer)
        self.mean, self.std = MEAN, STD
        self.requires_grad_(False).eval()

    # -- examples ---------------------------------------------------------------------------------------

    def preprocess(self, example: Example, training: bool) -> Batch:
        image = self._image(example)
        item: dict[str, Any] = {"pixel_values": self._pixels(image, example.id), "has_image": image is not None}
        if not training:
            ids = encode_question(example.inputs["text"], self._encode, has_image=image is not None)
            return item | {"input_ids": torch.tensor(self._with_patches(ids, ids)[0])}
        encoded = encode_conversation(
            example.inputs["conversations"],
            self._encode,
            has_image=image is not None,
            max_length=self.max_length,
            legacy=self.legacy,
            pad_id=self._unknown,
        )
        ids, labels = self._with_patches(encoded.input_ids, encoded.labels)
        ids, labels = ids[: self.max_length], labels[: self.max_length]
        if all(label == IGNORE for label in labels):
            raise self._unplaced(example.id) if encoded.mismatch else self._nothing_to_learn(example.id)
        return item | {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}

    def collate(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        longest = max(len(item["input_ids"]) for item in items)
        training = "labels" in items[0]
        batch = {
            "input_ids": padded([i["input_ids"] for i in items], longest, self.pad, right=training),
            "attention_mask": padded([torch.ones_like(i["input_ids"]) for i in items], longest, 0, right=training),
            "pixel_values": torch.stack([i["pixel_values"] for i in items]),
            "has_image": torch.tensor([bool(i["has_image"]) for i in items]),
        }
        if training:
            batch["labels"] = padded([i["labels"] for i in items], longest, IGNORE, right=True)
        if "position" in items[0]:
            batch["position"] = torch.tensor([i["position"] for i in items])
        return batch

    # -- loss -------------------------------------------------------------------------------------------

    def answer_logits(self, batch: Batch) -> tuple[Float[Tensor, "answers vocabulary"], Tensor, Tensor]:
        """As in the role; only these positions go through the head: no ``tokens x vocabulary`` matrix is made."""
        hidden = self.hidden(batch)
        labels = batch["labels"][:, 1:]
        learned = labels != IGNORE
        logits = self.model.lm_head(hidden[:, :-1][learned])[:, : self.vocabulary].float()
        return logits, labels[learned], learned.nonzero()[:, 0]

    def hidden(self, batch: Batch) -> Float[Tensor, "rows tokens dim"]:
        """The last layer's states. Rows without an image cost no work in the tower."""
        has_image = batch["has_image"]
        images = batch["pixel_values"][has_image].to(self.dtype) if bool(has_image.any()) else None
        out = self.model.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pixel_values=images,
            use_cache=False,
        )
        return out.last_hidden_state + self._without_image() if images is None else out.last_hidden_state

    # -- answers ----------------------------------------------------------------------------------------

    def _asking(self, limits: AnswerLimits, *, alike: bool) -> Callable[[Batch, Tensor, int], list[str]]:
        start = PromptCache(self.model, self._encode(question_start()) if alike else [])
        return lambda batch, rows, longest: self._generate(batch, rows, longest, limits.max_new_tokens, start)

    def _generate(self, batch: Batch, rows: Tensor, longest: int, max_new_tokens: int, start: PromptCache) -> list[str]:
        has_image = batch["has_image"][rows]
        images = batch["pixel_values"][rows][has_image].to(self.dtype) if bool(has_image.any()) else None
        new = greedy(
            self.model,
            batch["input_ids"][rows, -longest:],
            batch["attention_mask"][rows, -longest:],
            images,
            start=start,
            pad=self.pad,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.ends,
            suppress_tokens=self.suppressed or None,
        )
        return [self.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in new]

    # -- parts ------------------------------------------------------------------------------------------

    def save_processor(self, folder: Path) -> bool:
        return processor.save(
            folder,
            self.tokenizer,
            image_token=self.image_token,
            size=self.image_size,
            patch_size=self.model.config.vision_config.patch_size,
            mean=self.mean,
            std=self.std,
        )

    def _encode(self, text: str) -> list[int]:
        """Token ids that begin with BOS, whether the tokenizer puts it there or not."""
        ids = list(self.tokenizer(text).input_ids)
        bos = getattr(self.tokenizer, "bos_token_id", None)
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    @property
    def _unknown(self) -> int:
        found = getattr(self.tokenizer, "unk_token_id", None)
        return self.pad if found is None else found

    @property
    def suppressed(self) -> list[int]:
        """Ids of the rows from the image token on, which no answer holds."""
        return list(range(self.vocabulary, self.model.get_input_embeddings().weight.shape[0]))

    def _with_patches(self, ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int]]:
        """Ids with one image token a patch, and labels to match."""
        if IMAGE_ID not in ids:
            return list(ids), list(labels)
        at, n = list(ids).index(IMAGE_ID), self.patches
        return (
            [*ids[:at], *[self.image_token] * n, *ids[at + 1 :]],
            [*labels[:at], *[IGNORE] * n, *labels[at + 1 :]],
        )

    def _image(self, example: Example) -> Any:
        images = images_of(example.inputs)
        for name, what in (("video", "takes no videos"), ("said", "answers single questions")):
            if example.inputs.get(name):
                expected = "name: vlm, with a model that does"
                raise RecipeError(f"{example.id}: LLaVA-1.5 {what}", where="models.llm", expected=expected)
        if len(images) > 1:
            raise UnreadableExample(
                f"{len(images)} images in one conversation",
                where=example.id,
                expected="at most one, which is what LLaVA-1.5 has learned from",
                todo="Take a model of several images: models.llm.name=vlm.",
            )
        return images[0] if images else None

    def _pixels(self, image: Any, where: str) -> Tensor:
        if image is None:
            return torch.zeros(3, self.image_size, self.image_size)
        return pixels(open_image(image, where=where), size=self.image_size, mean=self.mean, std=self.std)

    def _unplaced(self, name: str) -> UnreadableExample:
        what = "the answers' tokens cannot be placed: an answer is empty or holds ' ASSISTANT: ' or '</s>'"
        return UnreadableExample(what, where=name, todo="Repair the record.")
