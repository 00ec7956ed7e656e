"""CLIP with a vision transformer: OpenAI, open_clip or Hugging Face weights, as a Hugging Face CLIPModel.

Knows how to load a CLIP and to turn pixels and texts into features. Does not know classes, prompts, losses or what a
method tunes: a loaded Clip is frozen and in evaluation mode, and the method unfreezes what it needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel
from transformers import logging as transformers_logging

from perdure.errors import RecipeError, WeightsError
from perdure.models.clip import open_clip_config, preprocessor, tokens
from perdure.models.clip.archive import MALFORMED, first_line, read_tensors
from perdure.models.clip.convert import check_sizes, from_openai, is_openai
from perdure.models.clip.source import Source, find
from perdure.models.clip.tokens import Tokenizer, Truncate
from perdure.models.clip.transform import ClipTransform, read_json

__all__ = ["Clip", "ClipTransform", "Config", "Tokenizer", "load"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which CLIP, and how it computes."""

    weights: str
    """Hub id (`openai/clip-vit-base-patch16`), OpenAI's name (`ViT-B/16`), folder, weights file (`.pt`, `.bin`,
    `.safetensors`) or the name of an embedded model (`micro-clip`)."""
    revision: str | None = None
    """Commit, branch or tag on the hub; none: the cached copy, else the newest."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Type of weights and activations."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """PyTorch's fused attention, or the written-out one (its softmax runs in float32)."""
    quick_gelu: bool | None = None
    """Only for weights files; none: as they or `open_clip_config.json` beside them say. True for OpenAI, DFN and
    MetaCLIP, false for LAION and DataComp."""
    heads: tuple[int, int] | None = None
    """Only for weights files: attention heads of the vision and the text tower; none: as `open_clip_config.json` beside
    them says, else width / 64."""

    def weights_absent(self) -> str:
        from perdure.models import named_weights

        return named_weights.absent(self.weights, self.revision)


def load(config: Config) -> Clip:
    """The CLIP that `config` names, frozen, in evaluation mode, on the CPU.

    Raises:
        WeightsError: nothing there, or not a CLIP with a vision transformer.
        RecipeError: settings that do not go together.
    """
    if config.dtype == "float64" and config.attention == "eager":
        raise RecipeError(
            "attention 'eager' rounds to float32",
            where="dtype: float64",
            todo="Set attention: sdpa.",
        )
    source = find(config.weights, revision=config.revision)
    dtype = getattr(torch, config.dtype)
    if source.path.is_dir() and (source.path / "config.json").is_file() and not source.is_open_clip:
        model = _from_folder(source.path, config, dtype)
    else:
        model = _from_file(source, config, dtype)
    return Clip(model, source=source, attention=config.attention)


class Clip(nn.Module):
    """A CLIPModel in `model`, with its tokenizer and its preprocessing.

    Features are projected and not normalised; ``scale * normalize(image) @ normalize(text).T`` are CLIP's logits.
    """

    def __init__(
        self,
        model: CLIPModel,
        *,
        source: Source | None = None,
        tokenizer: Tokenizer | None = None,
        attention: Literal["sdpa", "eager"] = "sdpa",
    ) -> None:
        super().__init__()
        model.set_attn_implementation(attention)
        self.model = model
        self.text_config: Any = model.config.text_config
        self.vision_config: Any = model.config.vision_config
        text = self.text_config
        folder = source.folder if source else None
        self.source = source
        self.tokenizer = tokenizer or tokens.from_folder(
            folder, vocabulary=text.vocab_size, context_length=text.max_position_embeddings
        )
        size = self.image_size
        theirs = bool(source and source.is_open_clip)
        look = preprocessor.from_folder(folder, size=size, open_clip=theirs) if folder else None
        self.transform = look or ClipTransform(size=size)
        # Hugging Face's first conversions say eos_token_id 2 and mean "the largest id", which is the last one.
        said = text.eos_token_id
        default = text.vocab_size - 1 if said == 2 else said
        self.eot = int(self.tokenizer.eot if self.tokenizer else default)
        self.requires_grad_(False).eval()

    @property
    def is_stock(self) -> bool:
        """Whether transformers' CLIPModel is all of it, so that others load what it saves."""
        return type(self.model.vision_model).__module__.startswith("transformers.")

    @property
    def dim(self) -> int:
        """Width of the joint feature space."""
        return self.model.visual_projection.out_features

    @property
    def context_length(self) -> int:
        """Most tokens in a text, with start and end."""
        return self.text_config.max_position_embeddings

    @property
    def image_size(self) -> int:
        """Side of the square image in pixels."""
        return self.vision_config.image_size

    @property
    def scale(self) -> Float[Tensor, ""]:
        """What cosine similarities are multiplied by: exp(logit_scale), 100 for OpenAI's weights."""
        return self.model.logit_scale.exp()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.model.logit_scale.dtype

    def image_features(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images dim"]:
        """Projected features of preprocessed images, not normalised."""
        if len(pixels) == 0:
            return self._nothing()
        output: Any = self.model.get_image_features(pixels.to(self.dtype))
        return output.pooler_output

    def text_features(
        self,
        ids: Int[Tensor, "texts tokens"],
        *,
        embeddings: Float[Tensor, "texts tokens width"] | None = None,
    ) -> Float[Tensor, "texts dim"]:
        """Projected features of token ids at their end-of-text token, not normalised.

        Args:
            ids: padded ids; fewer than `context_length` tokens are fine (see `cut`).
            embeddings: taken instead of the ids' token embeddings (learned prompts); `ids` then only say where the
                text ends. Positions are added here.
        """
        if len(ids) == 0:
            return self._nothing()
        hidden = self._text_hidden(ids, embeddings)
        rows = torch.arange(len(ids), device=hidden.device)
        return self.model.text_projection(hidden[rows, tokens.end_positions(ids, eot=self.eot)])

    def text_pooled(self, ids: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts width"]:
        """The text tower's output at the end-of-text token, before the projection."""
        hidden = self._text_hidden(ids, None)
        rows = torch.arange(len(ids), device=hidden.device)
        return hidden[rows, tokens.end_positions(ids, eot=self.eot)]

    def token_embeddings(self, ids: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts tokens width"]:
        """What `text_features` takes as `embeddings`: the ids' vectors, without positions."""
        return self.model.text_model.embeddings.token_embedding(ids)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Float[Tensor, "texts dim"]:
        """Features of strings, not normalised; gradients flow unless the caller switches them off."""
        ids = self.cut(self.tokenize(texts)).to(self.device)
        return torch.cat([self.text_features(part) for part in ids.split(batch_size)])

    def tokenize(self, texts: Sequence[str], *, truncate: Truncate = "no") -> Int[Tensor, "texts tokens"]:
        """Ids ``[SOT, words..., EOT, 0...]`` padded to `context_length`, on the CPU; see `Tokenizer`."""
        if self.tokenizer is None:
            raise WeightsError(
                f"has no tokenizer, and its vocabulary of {self.text_config.vocab_size} is not OpenAI's",
                where=self.source.name if self.source else "CLIP",
                todo="Put tokenizer.json beside the weights.",
            )
        return self.tokenizer(texts, truncate=truncate)

    def cut(self, ids: Int[Tensor, "texts tokens"]) -> Int[Tensor, "texts kept"]:
        """The ids up to the longest text's end: the same features for less work (the text mask is causal)."""
        return tokens.cut(ids, eot=self.eot)

    def visual_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the image side (tower and projection), by name in `model`."""
        return {name: p for name, p in self.model.named_parameters() if _is_visual(name)}

    def text_parameters(self) -> dict[str, nn.Parameter]:
        """All other parameters: text tower, token embeddings, projection and logit_scale."""
        return {name: p for name, p in self.model.named_parameters() if not _is_visual(name)}

    @property
    def weights_sha256(self) -> dict[str, str]:
        """SHA-256 of the weights files by name; empty for weights that came from no file."""
        return self.source.files if self.source else {}

    def provenance(self) -> dict[str, Any]:
        """JSON-ready facts for the result card: name, hub revision, file hashes, architecture."""
        vision = self.vision_config
        return {
            **(self.source.provenance() if self.source else {"weights": "made in memory"}),
            "architecture": getattr(vision, "architecture", None)
            or f"ViT {vision.num_hidden_layers}x{vision.hidden_size}/{vision.patch_size}",
            "image_size": self.image_size,
            "activation": vision.hidden_act,
            "dtype": str(self.dtype).removeprefix("torch."),
            "attention": self.model.config._attn_implementation,
        }

    def _nothing(self) -> Float[Tensor, "0 dim"]:
        """No features (Hugging Face's attention cannot reshape an empty batch)."""
        return torch.empty(0, self.dim, dtype=self.dtype, device=self.device)

    def _text_hidden(self, ids: Tensor, embeddings: Tensor | None) -> Float[Tensor, "texts tokens width"]:
        """Last hidden states after the final layer norm."""
        tower = self.model.text_model
        if embeddings is None:
            return tower(input_ids=ids).last_hidden_state
        hidden = tower.embeddings(inputs_embeds=embeddings.to(self.dtype))
        n = hidden.shape[1]
        mask = torch.full((n, n), -math.inf, dtype=hidden.dtype, device=hidden.device).triu(1)
        hidden = tower.encoder(inputs_embeds=hidden, attention_mask=mask[None, None]).last_hidden_state
        return tower.final_layer_norm(hidden)


def _is_visual(name: str) -> bool:
    return name.startswith(("vision_model.", "visual_projection."))


def _from_folder(folder: Path, config: Config, dtype: torch.dtype) -> CLIPModel:
    """A folder as `save_pretrained` writes it."""
    facts = read_json(folder / "config.json")
    if facts.get("model_type") != "clip":
        found = facts.get("model_type", "none")
        raise WeightsError(f"model_type is {found!r}", where=str(folder / "config.json"), expected="'clip'")
    if config.quick_gelu is not None or config.heads is not None:
        raise RecipeError("config.json in the folder says these already", where="quick_gelu, heads", todo="Drop them.")
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = CLIPModel.from_pretrained(
            folder,
            config=CLIPConfig.from_pretrained(folder),
            dtype=dtype,
            local_files_only=True,
            output_loading_info=True,
        )
    except MALFORMED as error:
        raise WeightsError(f"cannot be loaded ({first_line(error)})", where=str(folder)) from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing or info["mismatched_keys"]:
        first = missing[0] if missing else next(iter(info["mismatched_keys"]))
        raise WeightsError(f"the weights do not fill the model, first {first}", where=str(folder))
    return model


def _from_file(source: Source, config: Config, dtype: torch.dtype) -> CLIPModel:
    """A weights file with OpenAI's or open_clip's names."""
    (file,) = source.weight_files()[:1]
    state, stored_as = read_tensors(file)
    said = open_clip_config.beside(source.folder)
    quick_gelu = config.quick_gelu
    if quick_gelu is None and is_openai(state):
        quick_gelu = stated_activation(state, stored_as, said, where=str(file))
    more: dict[str, Any] = {}
    if said is not None:
        check_sizes(state, said.sizes or {}, where=said.where)
        more = {"eps": said.eps, "tanh_gelu": said.tanh_gelu}
    heads = config.heads or (said.heads if said else None)
    return from_openai(state, quick_gelu=bool(quick_gelu), heads=heads, dtype=dtype, where=str(file), **more)


def stated_activation(
    state: Mapping[str, Tensor], stored_as: str, said: open_clip_config.Said | None, *, where: str
) -> bool:
    """Whether weights with OpenAI's names want ``x * sigmoid(1.702 x)``, by what lies beside them or by their form.

    Raises:
        WeightsError: nothing says it.
    """
    if said is not None:
        return said.quick_gelu
    if stored_as == "torchscript" or "input_resolution" in state:
        return True  # only OpenAI's own releases look like this
    raise WeightsError(
        "the file does not say which activation it was trained with",
        where=where,
        todo="Set `quick_gelu: true` (OpenAI, DFN, MetaCLIP) or `false` (LAION, DataComp).",
    )
