"""A multimodal language model in the role `llm`: what methods that tune one ask of it.

Knows losses of answers, the order in which questions are answered, and where a decoder's linear layers and the
projector are. How an example becomes tokens and pixels, and how the network is called, is its subclasses' affair
(`llava`, `vlm`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from perdure import videos
from perdure.errors import UnreadableExample
from perdure.runtime.sharding import gather, in_parts
from perdure.types import Batch, Example

IGNORE = -100
"""Label of tokens that no loss is taken of."""


class AnswerLimits(Protocol):
    """How answers are generated; the settings of methods that answer by a language model have both."""

    @property
    def max_new_tokens(self) -> int:
        """Most tokens of an answer."""
        ...

    @property
    def generate_batch(self) -> int:
        """Answers that are generated together."""
        ...


class LanguageModel(nn.Module):
    """A ``...ForConditionalGeneration`` of transformers in `model`, with its tokenizer.

    Args:
        model: a causal language model with a vision tower.
        tokenizer: a Hugging Face tokenizer.
        max_length: tokens of a training conversation, its images' included.
    """

    sharded_by_stage = True
    """In a sharded run `sharding.place` places it, for a stage says which weights are trained and stay whole."""
    trains_projector = True
    """Whether the projector is trained with the updates; if not, it is part of no state."""

    converses = False
    """Whether a question may follow earlier turns, and show several images."""

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int = 2048) -> None:
        super().__init__()
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length
        self.image_tokens: set[int] = set()
        """Ids that stand for images or videos."""

    def prepare(self, *, max_length: int, projector: bool) -> None:
        """Freeze all, and make a projector that will be trained float32 among weights of other types.

        Args:
            max_length: tokens of a training conversation.
            projector: whether it is trained, where `trains_projector`.
        """
        self.max_length, self.trains_projector = max_length, self.trains_projector and projector
        self.requires_grad_(False).eval()
        for part in self.projector_parts.values() if self.trains_projector else ():
            for module in part if isinstance(part, nn.ModuleList) else [part]:
                if any(p.dtype != torch.float32 for p in module.parameters()):
                    module.float()
                    module.register_forward_pre_hook(_widened)
                    module.register_forward_hook(partial(_narrowed, dtype=self.dtype))

    # -- examples, by subclasses ------------------------------------------------------------------------

    def preprocess(self, example: Example, training: bool) -> Batch:
        """Tokens, labels and pixels of one example.

        Training reads ``conversations``, testing ``text`` (the question); ``image`` or ``video`` may be in both.
        ``said`` are turns before a question.

        Raises UnreadableExample if no token of an answer is left to learn.
        """
        raise NotImplementedError

    def collate(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        """Stacks examples; training rows are padded on the right, questions on the left."""
        raise NotImplementedError

    def answer_logits(self, batch: Batch) -> tuple[Float[Tensor, "answers vocabulary"], Tensor, Tensor]:
        """Logits where the next token is to be learned, those tokens, and the row of each; float32."""
        raise NotImplementedError

    def _asking(self, limits: AnswerLimits, *, alike: bool) -> Callable[[Batch, Tensor, int], list[str]]:
        """What answers some rows of a batch, given the longest of their lengths.

        Args:
            alike: the layers are the same for all questions, so that what questions begin with may be read once.
        """
        raise NotImplementedError

    def save_weights(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write the network with these weights, as transformers does."""
        self.model.save_pretrained(str(folder), state_dict=dict(state))

    def save_processor(self, folder: Path) -> bool:
        """Write tokenizer and processor; whether plain transformers can ask with them."""
        raise NotImplementedError

    # -- loss -------------------------------------------------------------------------------------------

    def answer_loss(self, batch: Batch, *, mean: Literal["token", "conversation"] = "token") -> Tensor:
        """Cross-entropy of the answers' tokens; `mean` over all of them, or over the conversations' means."""
        return mean_answer_loss(*self.answer_logits(batch), rows=len(batch["input_ids"]), mean=mean)

    # -- answers ----------------------------------------------------------------------------------------

    def answerer(
        self,
        limits: AnswerLimits,
        *,
        before: Callable[[Batch, Tensor], None] | None = None,
        group: Callable[[Batch], Tensor] | None = None,
    ) -> Callable[[Batch], list[str]]:
        """A function of a batch of questions: greedy answers, in the batch's order.

        Questions are sorted by length and answered `generate_batch` at a time. The weights must stay as they are
        while the function is in use: what all questions begin with may be read once.

        Args:
            before: called with the batch and the rows that are answered next, where layers differ from question to
                question; then nothing is shared between them.
            group: a number for each question, int64: only those of one number are answered together.
        """
        ask = self._asking(limits, alike=before is None)
        gather(self.blocks)

        def answer(batch: Batch) -> list[str]:
            if self.model.device != batch["input_ids"].device:  # sharded, and no stage has placed it yet
                self.to(batch["input_ids"].device)
            lengths = batch["attention_mask"].sum(1)
            order = lengths.argsort(stable=True)
            answers = [""] * len(order)
            parts = [order]
            if group is not None:
                groups = group(batch).to(order.device)[order]
                parts = [order[groups == number] for number in groups.unique()]
            for part in [rows for one in parts for rows in one.split(limits.generate_batch)]:
                if before is not None:
                    before(batch, part)
                for i, text in zip(part.tolist(), ask(batch, part, int(lengths[part].max()))):
                    answers[i] = text
            return answers

        return answer

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
    def projector_parts(self) -> dict[str, nn.Module]:
        """From image features to the language model's embeddings: modules by name in the whole model."""
        return {"model.multi_modal_projector": self.model.model.multi_modal_projector}

    @property
    def projector(self) -> nn.Module:
        """The projector, or a list of its parts where there are several."""
        parts = list(self.projector_parts.values())
        return parts[0] if len(parts) == 1 else nn.ModuleList(parts)

    def projector_parameters(self) -> dict[str, nn.Parameter]:
        """Of a projector that is trained, by name."""
        return dict(self.projector.named_parameters()) if self.trains_projector else {}

    def projector_state(self) -> dict[str, Tensor]:
        """The state of a projector that is trained; empty for one that is not."""
        return self.projector.state_dict() if self.trains_projector else {}

    def load_projector(self, state: Mapping[str, Tensor]) -> None:
        """What `projector_state` gave."""
        if self.trains_projector:
            self.projector.load_state_dict(state)

    @contextmanager
    def with_projector(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Within, under ``no_grad``, the projector has other values: those of `projector_state` at another time."""
        own = self.projector_parameters()
        values = {name: p.data for name, p in own.items()}
        try:
            for name, p in own.items():
                p.data = state[name]
            yield
        finally:
            for name, p in own.items():
                p.data = values[name]

    def linear_names(self) -> dict[str, str]:
        """Every linear layer that is adapted: name in the language model -> name in the whole model; not the head."""
        prefix = next(name for name, m in self.model.named_modules() if m is self.language_model)
        linear = (n for n, m in self.language_model.named_modules() if isinstance(m, nn.Linear))
        return {name: f"{prefix}.{name}" for name in linear}

    @property
    def dtype(self) -> torch.dtype:
        """Type of the embeddings."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def pad(self) -> int:
        """The id that fills rows up."""
        for name in ("pad_token_id", "unk_token_id", "eos_token_id"):
            if (found := getattr(self.tokenizer, name, None)) is not None:
                return found
        return 0

    @property
    def ends(self) -> list[int]:
        """Ids that end an answer: the tokenizer's, and what the model's generation settings add."""
        stated = self.model.generation_config.eos_token_id
        more = stated if isinstance(stated, list) else [] if stated is None else [stated]
        own = self.tokenizer.eos_token_id
        return list(dict.fromkeys([*([] if own is None else [own]), *more]))

    @property
    def suppressed(self) -> list[int]:
        """Ids that no answer holds."""
        return []

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

    def _without_image(self) -> Tensor | float:
        """Added to what a batch without an image gives: the projector's gradient is zero there, not absent, so that
        its moments decay."""
        if not torch.is_grad_enabled():
            return 0.0
        return sum((p.sum() for p in self.projector.parameters() if p.requires_grad), start=0.0) * 0.0

    def _nothing_to_learn(self, name: str) -> UnreadableExample:
        return UnreadableExample(
            f"no answer lies within the first {self.max_length} tokens",
            where=name,
            expected="a question that leaves room for its answer",
            todo="Shorten it, or raise `max_length`.",
        )


def _widened(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in given)


def _narrowed(_: nn.Module, __: tuple[Any, ...], out: Tensor, *, dtype: torch.dtype) -> Tensor:
    return out.to(dtype)


def images_of(inputs: Mapping[str, Any]) -> list[Any]:
    """The images of an example: none, one, or a list."""
    image = inputs.get("image")
    return [] if image is None else list(image) if isinstance(image, list | tuple) else [image]


def still_of(inputs: Mapping[str, Any]) -> Any:
    """One picture that stands for all that an example shows: its first image, or the middle frame of its video."""
    image = next(iter(images_of(inputs)), None)
    return videos.frames(inputs["video"], 1).images[0] if image is None and "video" in inputs else image


def shows(inputs: Mapping[str, Any]) -> bool:
    """Whether an example shows anything, an image or a video."""
    return bool(images_of(inputs)) or "video" in inputs


def padded(rows: Sequence[Tensor], length: int, value: int, *, right: bool) -> Tensor:
    """Rows of ids as one matrix, filled up on the right or on the left."""
    out = torch.full((len(rows), length), value, dtype=torch.long)
    for target, row in zip(out, rows):
        if right:
            target[: len(row)] = row
        else:
            target[length - len(row) :] = row
    return out


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
