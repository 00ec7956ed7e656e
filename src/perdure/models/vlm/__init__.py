"""Any image-text-to-text model of transformers: Qwen-VL, InternVL, LLaVA-NeXT, SmolVLM, Gemma 3 and others like them.

Needs: 8 GB memory for 3 B parameters in bfloat16.

By hub id or folder, with its own processor and chat template. Several images of any size a conversation, a video, or
none.
Knows how such a network is called, for losses and for answers. Conversations, batches and checkpoints have files of
their own. Does not know tasks or updates.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from perdure import videos
from perdure.errors import RecipeError, UnreadableExample
from perdure.files import tensor_files
from perdure.images import open_image
from perdure.models.language_model import IGNORE, AnswerLimits, LanguageModel, images_of
from perdure.models.vlm import batches, checkpoint, quantized
from perdure.models.vlm.conversation import TOKENWISE, Conversations, image_part, video_part
from perdure.types import Batch, Example

__all__ = ["Config", "Vlm", "load"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A checkpoint of transformers, and how it is used."""

    weights: str
    """Hub id (`Qwen/Qwen2.5-VL-3B-Instruct`) or folder."""
    revision: str | None = None
    """Commit, branch or tag on the hub."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of the weights."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Implementation of attention."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get updates, such as q_proj and v_proj; empty: all of those that `tune` says."""
    tune: Literal["language", "language+projector", "language+vision", "language+projector+vision"] = "language"
    """What is trained: low-rank updates on every linear layer of the language model but its head; with the projector
    whole; with updates on those of the vision tower."""
    chat_template: Path | None = None
    """A Jinja file instead of the checkpoint's template."""
    system: str = ""
    """A system message before each conversation; empty: what the template says by itself."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """Weights of the language model in 8 or 4 bits (QLoRA), by bitsandbytes: `pip install "perdure[quantize]"`. Updates
    of earlier tasks are kept beside them, never merged."""
    max_pixels: Annotated[int, Field(ge=1)] | None = None
    """Most pixels of an image, or of a video's frame, to which larger ones are scaled (Qwen-VL; a token has 28 x 28 of
    them, in Qwen3-VL 32 x 32); none: the checkpoint's own limit, of up to 16,000 tokens."""
    max_tiles: Annotated[int, Field(ge=1)] | None = None
    """Most tiles of an image, where it is cut into such (InternVL, LLaVA-NeXT, LLaVA-OneVision, Idefics3, SmolVLM);
    none: the checkpoint's own."""

    frames: Annotated[int, Field(ge=1, le=1024)] = 8
    """Frames that are taken of a video, evenly spaced."""
    frame_rate: Annotated[float, Field(gt=0)] = 1.0
    """Frames a second of a video that is a folder or a list of frames; a video file says it itself."""

    def bytes_needed(self) -> int:
        """Of the weights alone, where they are on this machine: 4 and 8 bits with their scales."""
        from math import prod

        from perdure.files.tensor_files import shapes

        wide = 4.0 if self.dtype == "float32" else 2.0
        packed = {"none": wide, "int8": 1.01, "nf4": 0.52}[self.quantize]
        total = 0.0
        for name, shape in shapes(self.weights, revision=self.revision).items():
            inside = len(shape) == 2 and ".layers." in name and "vis" not in name
            total += prod(shape) * (packed if inside else wide)
        return int(total)

    def bytes_written(self) -> int:
        """Checkpoints hold the weights only where updates are merged into them, in float32."""
        return self.bytes_needed() if self.dtype == "float32" else 0


def load(config: Config) -> Vlm:
    """The model that `config` names, frozen, in evaluation mode, on the CPU.

    Raises:
        WeightsError: nothing there, or a type of model that does not fit.
        RecipeError: its template cannot be learned from.
        MissingExtra: its processor or `quantize` needs a package.
    """
    return _made(config, with_weights=True)


def without_weights(config: Config) -> Vlm:
    """The same without weights: its tokens can be looked at."""
    return _made(config, with_weights=False)


def _made(config: Config, *, with_weights: bool) -> Vlm:
    name, revision = config.weights, config.revision
    settings = checkpoint.settings_of(name, revision)
    processor = checkpoint.processor_of(
        name,
        revision,
        template=config.chat_template,
        max_pixels=config.max_pixels,
        max_tiles=config.max_tiles,
        frames=config.frames,
    )
    Conversations(processor, name=name, system=config.system)  # what does not fit is said before weights are read
    model = checkpoint.empty_model(settings)
    if with_weights:
        dtype = getattr(torch, config.dtype)
        how = {} if config.quantize == "none" else quantized.settings(config.quantize, model, dtype)
        model = checkpoint.model_of(name, revision, dtype=dtype, attention=config.attention, **how)
        quantized.readable(model)
    return Vlm(
        model,
        processor,
        name=name,
        tune=config.tune,
        targets=config.targets,
        system=config.system,
        frames=config.frames,
        frame_rate=config.frame_rate,
    )


class Vlm(LanguageModel):
    """An image-text-to-text model of transformers in `model`, with its processor.

    Args:
        model: a ``...ForConditionalGeneration`` around a decoder, a vision tower and a projector.
        processor: its own.
        name: of the checkpoint, for errors.
        tune: what is trained, as in `Config`.
        targets: names of layers that get updates; empty: all that `tune` says.
        system: a message before each conversation.
        max_length: tokens of a training conversation.
        frames: of a video.
        frame_rate: of videos that are lists or folders of frames.
    """

    converses = True

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str,
        tune: str = "language",
        targets: Sequence[str] = (),
        system: str = "",
        max_length: int = 2048,
        frames: int = 8,
        frame_rate: float = 1.0,
    ) -> None:
        super().__init__(model, processor.tokenizer, max_length=max_length)
        self.processor, self.name, self.tuned = processor, name, tune.split("+")
        self.targets, self.frames, self.frame_rate = targets, frames, frame_rate
        self.trains_projector = "projector" in self.tuned
        self.conversations = Conversations(processor, name=name, system=system, ends=super().ends)
        self.image_tokens = _image_tokens(model.config)
        self.requires_grad_(False).eval()

    # -- examples ---------------------------------------------------------------------------------------

    def preprocess(self, example: Example, training: bool) -> Batch:
        shown = self._shown(example)
        if training:
            said = _turns(example.inputs["conversations"])
            made = self._cut(self.conversations.learned(said, shown, example.id), example.id)
        else:
            said = [*example.inputs.get("said", ()), {"from": "human", "value": example.inputs["text"]}]
            made = self.conversations.question(said, shown, example.id)
        tokens = {name: made[name] for name in (*TOKENWISE, "labels") if name in made}
        media = {name: value for name, value in made.items() if name not in tokens}
        return {**tokens, "media": media if shown else {}, "has_image": bool(shown)}

    def _shown(self, example: Example) -> list[dict[str, Any]]:
        """Images, or frames of a video, as parts of a message."""
        parts = [image_part(open_image(image, where=example.id)) for image in images_of(example.inputs)]
        if "video" not in example.inputs:
            return parts
        if not self.conversations.takes_videos:
            raise self.conversations.no_videos(example.id)
        if parts:
            raise UnreadableExample("images and a video", where=example.id, expected="one or the other")
        seen = videos.frames(example.inputs["video"], self.frames, rate=self.frame_rate, where=example.id)
        return [video_part(seen)]

    def collate(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        return batches.collate(items, pad=self.pad)

    def _cut(self, item: dict[str, Tensor], where: str) -> dict[str, Tensor]:
        """An item of at most `max_length` tokens, none of them an image's; UnreadableExample if none is learned."""
        ids, labels = item["input_ids"], item["labels"]
        beyond = torch.isin(ids[self.max_length :], torch.tensor(sorted(self.image_tokens)))
        if bool(beyond.any()):
            raise UnreadableExample(
                f"{len(ids)} tokens, and images beyond the first {self.max_length}",
                where=where,
                todo="Raise method.tuning.max_length, or limit images: models.llm.max_pixels, max_tiles or frames.",
            )
        if bool((labels[: self.max_length] == IGNORE).all()):
            raise self._nothing_to_learn(where)
        return {n: v[: self.max_length] if n in TOKENWISE or n == "labels" else v for n, v in item.items()}

    # -- loss -------------------------------------------------------------------------------------------

    def answer_logits(self, batch: Batch) -> tuple[Float[Tensor, "answers vocabulary"], Tensor, Tensor]:
        """As in the role; only columns of tokens in which some row learns go through the head."""
        labels = batch["labels"][:, 1:]
        learned = labels != IGNORE
        columns = learned.any(0).nonzero()[:, 0]
        taken = batches.inputs(batch, dtype=self.dtype)
        logits = self.model(**taken, use_cache=False, logits_to_keep=columns).logits
        logits = logits[learned[:, columns]].float()
        if not any(batch["media"]):
            logits = logits + self._without_image()
        return logits, labels[learned], learned.nonzero()[:, 0]

    # -- answers ----------------------------------------------------------------------------------------

    def _asking(self, limits: AnswerLimits, *, alike: bool) -> Callable[[Batch, Tensor, int], list[str]]:
        @torch.no_grad()
        def ask(batch: Batch, rows: Tensor, longest: int) -> list[str]:
            out = self.model.generate(
                **batches.inputs(batch, dtype=self.dtype, rows=rows, longest=longest),
                # all that a checkpoint's own settings may say of sampling is said otherwise
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                max_new_tokens=limits.max_new_tokens,
                pad_token_id=self.pad,
                eos_token_id=self.ends,
                suppress_tokens=self.suppressed or None,
            )
            texts = self.tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
            return [text.strip() for text in texts]

        return ask

    # -- parts ------------------------------------------------------------------------------------------

    @property
    def language_model(self) -> nn.Module:
        return checkpoint.decoder(self.model)

    @property
    def projector_parts(self) -> dict[str, nn.Module]:
        names = ("multi_modal_projector", "connector", "merger", "deepstack_merger_list")
        return {n: m for n, m in self.model.named_modules() if n.rpartition(".")[2] in names}

    def linear_names(self) -> dict[str, str]:
        found = super().linear_names()
        if "vision" in self.tuned:
            parts = tuple(f"{name}." for name in self.projector_parts)
            for name, m in self.model.named_modules():
                if isinstance(m, nn.Linear) and name.startswith(VISION) and not name.startswith(parts):
                    found[name.removeprefix("model.")] = name
        kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in found))
        for target in self.targets:
            if target not in kinds:
                expected = f"of {', '.join(kinds)}"
                raise RecipeError(f"no layer is called {target!r}", where="models.llm.targets", expected=expected)
        return {own: name for own, name in found.items() if not self.targets or own.rpartition(".")[2] in self.targets}

    @property
    def ends(self) -> list[int]:
        """Ids that end an answer: the tokenizer's, the generation settings' and the template's."""
        return self.conversations.ends

    @property
    def suppressed(self) -> list[int]:
        """Ids that stand for images, and rows of the vocabulary that are no token's."""
        rows = self.model.get_input_embeddings().weight.shape[0]
        return sorted({*self.image_tokens, *range(len(self.tokenizer), rows)})

    def save_weights(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        if getattr(self.model, "quantization_method", None) is None:
            super().save_weights(folder, state)
        else:
            quantized.save(self.model, folder, state)

    def save_processor(self, folder: Path) -> bool:
        """The processor; and, from the checkpoint, the files that older programs look for."""
        self.processor.save_pretrained(str(folder))
        first = tensor_files.folder(self.name)
        for file in (first / name for name in checkpoint.BESIDE) if first is not None else ():
            if file.is_file() and not (folder / file.name).exists():
                shutil.copy(file, folder / file.name)
        return True


VISION = ("model.visual.", "model.vision_tower.", "model.vision_model.")
"""Names of the vision tower beside the language model."""


def _turns(said: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Messages from the first question on."""
    return list(said[1:] if said and said[0]["from"] == "gpt" else said)


def _image_tokens(config: Any) -> set[int]:
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    return {i for i in (getattr(config, name, None) for name in names) if isinstance(i, int)}
