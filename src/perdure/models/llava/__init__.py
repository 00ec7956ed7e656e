"""LLaVA: a Llama that sees through a CLIP tower, as a Hugging Face LlavaForConditionalGeneration.

Needs: 15 GB memory for 7 B parameters in bfloat16.

Knows how to load or assemble a LLaVA, to make tokens and pixels of an example, the loss of answers, and answers.
Does not know tasks, low-rank updates (`adapters`) or what a method adds to the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perdure.errors import RecipeError, UnreadableExample
from perdure.images import open_image
from perdure.models.llava import assemble
from perdure.models.llava.answers import PromptCache, greedy
from perdure.models.llava.conversation import IGNORE, IMAGE_ID, encode_conversation, encode_question, question_start
from perdure.models.llava.images import MEAN, STD, pixels
from perdure.models.llava.tokenizer import is_legacy
from perdure.runtime.sharding import gather, in_parts
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


class AnswerLimits(Protocol):
    """How answers are generated; the settings of methods that answer by a LLaVA have both."""

    @property
    def max_new_tokens(self) -> int:
        """Most tokens of an answer."""
        ...

    @property
    def generate_batch(self) -> int:
        """Answers that are generated together."""
        ...


def load(config: Config) -> Llava:
    """The LLaVA that `config` names, frozen, in evaluation mode, on the CPU.

    Raises:
        WeightsError: nothing there, or parts that do not fit.
        RecipeError: neither or both of `weights` and `llm`.
    """
    for name, what in config.faults():
        raise RecipeError(what, where=f"llava.{name}")
    dtype = getattr(torch, config.dtype)
    if config.weights is not None:
        model, tokenizer = assemble.whole(
            config.weights, revision=config.revision, dtype=dtype, legacy=config.legacy_tokenizer
        )
    else:
        assert config.llm is not None
        model, tokenizer = assemble.parts(
            config.llm,
            config.vision,
            config.projector,
            revision=config.revision,
            dtype=dtype,
            legacy=config.legacy_tokenizer,
        )
    model.set_attn_implementation(config.attention)
    llava = Llava(model, tokenizer)
    seen = {"revision": config.revision} if config.weights else {}
    llava.mean, llava.std = assemble.pixel_statistics(config.weights or config.vision, **seen)
    return llava


class Llava(nn.Module):
    """A LlavaForConditionalGeneration in `model`, with its tokenizer.

    Args:
        model: any LLaVA-1.5: CLIP's patch features, a two-layer projector, a causal language model.
        tokenizer: a Hugging Face tokenizer, or any ``text -> .input_ids`` with `decode`.
        max_length: tokens of a training conversation, the image's included.
    """

    sharded_by_stage = True
    """In a sharded run `sharding.place` places it, for a stage says which weights are trained and stay whole."""

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int = 2048) -> None:
        super().__init__()
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length
        config = model.config
        self.image_token: int = config.image_token_id
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
        """Tokens, labels and pixels of one example.

        Training reads ``conversations``, testing ``text`` (the question); ``image`` may be absent in both.

        Raises UnreadableExample if no token of an answer is left to learn.
        """
        image = example.inputs.get("image")
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
            raise self._nothing_to_learn(example.id, encoded.mismatch)
        return item | {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}

    def collate(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        """Stacks examples; training rows are padded on the right, questions on the left."""
        longest = max(len(item["input_ids"]) for item in items)
        training = "labels" in items[0]
        batch = {
            "input_ids": _padded([i["input_ids"] for i in items], longest, self.pad, right=training),
            "attention_mask": _padded([torch.ones_like(i["input_ids"]) for i in items], longest, 0, right=training),
            "pixel_values": torch.stack([i["pixel_values"] for i in items]),
            "has_image": torch.tensor([bool(i["has_image"]) for i in items]),
        }
        if training:
            batch["labels"] = _padded([i["labels"] for i in items], longest, IGNORE, right=True)
        if "position" in items[0]:
            batch["position"] = torch.tensor([i["position"] for i in items])
        return batch

    # -- loss -------------------------------------------------------------------------------------------

    def answer_logits(self, batch: Batch) -> tuple[Float[Tensor, "answers vocabulary"], Tensor, Tensor]:
        """Logits where the next token is to be learned, those tokens, and the row of each; float32.

        Only these positions go through the head: the rest of the ``tokens x vocabulary`` matrix is never made.
        """
        hidden = self.hidden(batch)
        labels = batch["labels"][:, 1:]
        learned = labels != IGNORE
        logits = self.model.lm_head(hidden[:, :-1][learned])[:, : self.vocabulary].float()
        return logits, labels[learned], learned.nonzero()[:, 0]

    def answer_loss(self, batch: Batch, *, mean: Literal["token", "conversation"] = "token") -> Tensor:
        """Cross-entropy of the answers' tokens; `mean` over all of them, or over the conversations' means."""
        return mean_answer_loss(*self.answer_logits(batch), rows=len(batch["input_ids"]), mean=mean)

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
        if images is None and torch.is_grad_enabled():
            # No image in the batch: the projector's gradient is zero, not absent, so its moments decay.
            nothing = sum(p.sum() for p in self.projector.parameters() if p.requires_grad) * 0
            return out.last_hidden_state + nothing
        return out.last_hidden_state

    # -- answers ----------------------------------------------------------------------------------------

    def answerer(
        self, limits: AnswerLimits, *, before: Callable[[Batch, Tensor], None] | None = None
    ) -> Callable[[Batch], list[str]]:
        """A function of a batch of questions: greedy answers, in the batch's order.

        Questions are sorted by length and answered `generate_batch` at a time. The weights must stay as they are
        while the function is in use: what all questions begin with is read once.

        Args:
            before: called with the batch and the rows that are answered next, where layers differ from question to
                question; then nothing is shared between them.
        """
        start = PromptCache(self.model, self._encode(question_start()) if before is None else [])
        gather(self.blocks)

        def answer(batch: Batch) -> list[str]:
            if self.model.device != batch["input_ids"].device:  # sharded, and no stage has placed it yet
                self.to(batch["input_ids"].device)
            lengths = batch["attention_mask"].sum(1)
            order = lengths.argsort(stable=True)
            answers = [""] * len(order)
            for part in order.split(limits.generate_batch):
                if before is not None:
                    before(batch, part)
                texts = self._generate(batch, part, int(lengths[part].max()), limits.max_new_tokens, start)
                for i, text in zip(part.tolist(), texts):
                    answers[i] = text
            return answers

        return answer

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

    @property
    def language_model(self) -> nn.Module:
        """The decoder, without its head."""
        return self.model.model.language_model

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder's layers, which hold nearly all of its weights."""
        return self.language_model.layers  # type: ignore[return-value]

    @property
    def projector(self) -> nn.Module:
        """From CLIP's patch features to the language model's embeddings: two linear layers."""
        return self.model.model.multi_modal_projector

    @property
    def dtype(self) -> torch.dtype:
        """Type of the embeddings."""
        return self.model.get_input_embeddings().weight.dtype

    def checkpoint_activations(self, on: bool) -> None:
        """Recompute activations in the backward pass, or keep them."""
        # transformers 5.20 gave these methods their new names.
        new = hasattr(self.model, "activation_checkpointing_enable")
        family = "activation" if new else "gradient"
        if on:
            # a weight that is whole only at work has no shape when the recomputed one is compared with the first
            check = "none" if in_parts(self.blocks) else "default"
            settings = {"use_reentrant": False, "determinism_check": check}
            getattr(self.model, f"{family}_checkpointing_enable")(settings)
        elif getattr(self.model, f"is_{family}_checkpointing"):
            getattr(self.model, f"{family}_checkpointing_disable")()

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

    @property
    def ends(self) -> list[int]:
        """Ids that end an answer: the tokenizer's, and what the model's generation settings add."""
        stated = self.model.generation_config.eos_token_id
        more = stated if isinstance(stated, list) else [] if stated is None else [stated]
        return list(dict.fromkeys([self.tokenizer.eos_token_id, *more]))

    @property
    def pad(self) -> int:
        """The id that fills rows up."""
        for name in ("pad_token_id", "unk_token_id", "eos_token_id"):
            if (found := getattr(self.tokenizer, name, None)) is not None:
                return found
        return 0

    def _with_patches(self, ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[int]]:
        """Ids with one image token a patch, and labels to match."""
        if IMAGE_ID not in ids:
            return list(ids), list(labels)
        at, n = list(ids).index(IMAGE_ID), self.patches
        return (
            [*ids[:at], *[self.image_token] * n, *ids[at + 1 :]],
            [*labels[:at], *[IGNORE] * n, *labels[at + 1 :]],
        )

    def _pixels(self, image: Any, where: str) -> Tensor:
        if image is None:
            return torch.zeros(3, self.image_size, self.image_size)
        return pixels(open_image(image, where=where), size=self.image_size, mean=self.mean, std=self.std)

    def _nothing_to_learn(self, name: str, mismatch: bool) -> UnreadableExample:
        if mismatch:
            what = "the answers' tokens cannot be placed: an answer is empty or holds ' ASSISTANT: ' or '</s>'"
            return UnreadableExample(what, where=name, todo="Repair the record.")
        return UnreadableExample(
            f"no answer lies within the first {self.max_length} tokens",
            where=name,
            expected="a question that leaves room for its answer",
            todo="Shorten it, or raise `max_length`.",
        )


def mean_answer_loss(
    logits: Float[Tensor, "answers vocabulary"],
    labels: Tensor,
    row: Tensor,
    *,
    rows: int,
    mean: Literal["token", "conversation"],
) -> Tensor:
    """Cross-entropy over answer tokens, or the mean over `rows` conversations of their own means."""
    if mean == "token":
        return F.cross_entropy(logits, labels)
    each = F.cross_entropy(logits, labels, reduction="none")
    sums = each.new_zeros(rows).index_add_(0, row, each)
    counts = torch.bincount(row, minlength=rows).clamp(min=1)
    return (sums / counts).mean()


def _padded(rows: Sequence[Tensor], length: int, value: int, *, right: bool) -> Tensor:
    out = torch.full((len(rows), length), value, dtype=torch.long)
    for target, row in zip(out, rows):
        if right:
            target[: len(row)] = row
        else:
            target[length - len(row) :] = row
    return out
