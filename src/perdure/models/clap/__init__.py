"""CLAP with an HTSAT audio tower and a RoBERTa text tower: Hugging Face or LAION weights, as a Hugging Face ClapModel.

Needs: 0.8 GB of weights.

Knows how to load a CLAP, and to turn waves and texts into features; the audio tower can be driven block by block.
Does not know classes, prompts, losses or what a method tunes: a loaded Clap is frozen and in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, ClapConfig, ClapModel, PreTrainedTokenizerBase
from transformers import logging as transformers_logging

from perdure.errors import DataError, WeightsError
from perdure.models.clap import preprocessor
from perdure.models.clap.convert import from_laion, is_laion
from perdure.models.clap.mel import FrontEnd
from perdure.models.clip.archive import MALFORMED, first_line, read_tensors
from perdure.models.clip.source import Source, find
from perdure.models.clip.transform import read_json

__all__ = ["Block", "Clap", "Config", "FrontEnd", "load"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which CLAP, and how it hears."""

    weights: str
    """Hub id (`laion/clap-htsat-fused`), folder, LAION's weights file (`630k-audioset-fusion-best.pt`) or the name
    of an embedded model."""
    revision: str | None = None
    """Commit, branch or tag on the hub; none: the cached copy, else the newest."""
    tokenizer: str = ""
    """Folder or hub id of the text tower's tokenizer; empty: beside the weights (`roberta-base` for LAION's file)."""
    mel_reference_rate: Literal[32_000, 48_000] = 32_000
    """Waves are at 32 kHz. 32000: mel bands are where they should be. 48000: as in the published code of PHP, where
    the checkpoint's mel matrix for 48 kHz takes their place."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Type of weights and activations."""


def load(config: Config) -> Clap:
    """The CLAP that `config` names, frozen, in evaluation mode, on the CPU.

    Raises:
        WeightsError: nothing there, or not a CLAP with an HTSAT tower.
    """
    source = find(config.weights, revision=config.revision)
    dtype = getattr(torch, config.dtype)
    if source.path.is_dir() and (source.path / "config.json").is_file():
        model, folder = _from_folder(source), config.tokenizer or str(source.path)
    else:
        model, folder = _from_file(source), config.tokenizer or "roberta-base"
    audio: Any = model.config.audio_config
    stated = preprocessor.front_end(source.folder, mels=audio.num_mel_bins)
    front = FrontEnd(mels=audio.num_mel_bins, reference_rate=config.mel_reference_rate, **stated)
    return Clap(model.to(dtype), source=source, tokenizer=_tokenizer(folder), front=front)


class Block(NamedTuple):
    """One transformer block of the audio tower, and what comes after it."""

    layer: nn.Module
    resolution: tuple[int, int]
    """Rows and columns of the token map that it works on."""
    merge: nn.Module | None
    """Patch merging after the last block of a stage."""

    def __call__(self, tokens: Float[Tensor, "segments tokens dim"]) -> Float[Tensor, "segments tokens dim"]:
        """The block alone, without merging."""
        return self.layer(tokens, self.resolution)[0]

    def merged(self, tokens: Float[Tensor, "segments tokens dim"]) -> Float[Tensor, "segments merged wider"]:
        """What the next block takes."""
        return tokens if self.merge is None else self.merge(tokens, self.resolution)


class Clap(nn.Module):
    """A ClapModel in `model`, with its tokenizer and its front end. HTSAT runs without the fusion of long clips.

    ``audio_features(...)`` of `patches` that went through all of `blocks` are projected and not normalized.
    """

    never_compiled = True
    """torch reasons for minutes about the windows of HTSAT's blocks, whose sizes change from stage to stage."""

    def __init__(
        self,
        model: ClapModel,
        *,
        source: Source | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        front: FrontEnd | None = None,
    ) -> None:
        super().__init__()
        self.model, self.source, self.tokenizer = model, source, tokenizer
        config: Any = model.config.audio_config
        self.front = front or FrontEnd(mels=config.num_mel_bins)
        tower: Any = model.audio_model.audio_encoder
        tower.enable_fusion = tower.patch_embed.enable_fusion = False  # as if no clip were longer than ten seconds
        self.requires_grad_(False).eval()

    @property
    def tower(self) -> Any:
        """Hugging Face's ClapAudioEncoder."""
        return self.model.audio_model.audio_encoder

    @property
    def blocks(self) -> list[Block]:
        """All blocks of all stages in order."""
        tower = self.tower
        return [
            Block(layer, tower.input_resolutions[i], stage.downsample if layer is stage.blocks[-1] else None)
            for i, stage in enumerate(tower.layers)
            for layer in stage.blocks
        ]

    @property
    def token_shapes(self) -> list[tuple[int, int]]:
        """Tokens and width of what each block takes."""
        config: Any = self.model.config.audio_config
        first = config.patch_embeds_hidden_size
        widths = [first * 2**i for i, stage in enumerate(self.tower.layers) for _ in stage.blocks]
        return [(block.resolution[0] * block.resolution[1], width) for block, width in zip(self.blocks, widths)]

    @property
    def dim(self) -> int:
        """Width of the joint feature space."""
        return self.model.audio_projection.linear2.out_features

    @property
    def width(self) -> int:
        """Width of the last block's tokens."""
        return self.token_shapes[-1][1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.logit_scale_a.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.model.logit_scale_a.dtype

    @property
    def raw_scale(self) -> Float[Tensor, ""]:
        """The logit scale of audio as it is stored: the logarithm of what cosine similarities should be times."""
        return self.model.logit_scale_a.detach()

    def log_mel(
        self, wave: Float[Tensor, "segments samples"], *, seconds: float = 10.0
    ) -> Float[Tensor, "segments 1 frames mels"]:
        """Decibels of the mel bands of waves at 32 kHz, each repeated to `seconds`."""
        return self.front(wave.float(), seconds=seconds)

    def patches(
        self,
        mel: Float[Tensor, "segments 1 frames mels"],
        *,
        batch_statistics: bool = False,
        update: bool = False,
        change: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "segments tokens dim"]:
        """Normalized, folded to a square and cut into patches: what the first block takes.

        Args:
            batch_statistics: normalize the mel bands by this batch, not by the stored mean and variance.
            update: with `batch_statistics`, move the stored ones on (a tenth), as training mode does.
            change: applied to the normalized spectrogram ``[segments 1 frames mels]``, if given.
        """
        norm, longest = self.tower.batch_norm, self.tower.spec_size * self.tower.freq_ratio
        if mel.shape[2] > longest:
            raise DataError(f"a clip of {mel.shape[2]} frames", expected=f"at most {longest}, as CLAP was made for")
        stored = (norm.running_mean, norm.running_var) if update or not batch_statistics else (None, None)
        bands = mel.to(self.dtype).transpose(1, 3)
        bands = F.batch_norm(
            bands, *stored, norm.weight, norm.bias, training=batch_statistics, momentum=norm.momentum, eps=norm.eps
        )
        normalized = bands.transpose(1, 3)
        image = self.tower.reshape_mel2img(normalized if change is None else change(normalized))
        return self.tower.patch_embed(image)

    def audio_features(self, tokens: Float[Tensor, "segments tokens width"]) -> Float[Tensor, "segments dim"]:
        """Projected features of the last block's tokens: layer norm, mean over tokens, two linear layers."""
        return self.model.audio_projection(self.tower.norm(tokens).mean(1))

    def encode_audio(self, mel: Float[Tensor, "segments 1 frames mels"]) -> Float[Tensor, "segments dim"]:
        """Features of log-mel spectrograms, by the tower as it is."""
        tokens = self.patches(mel)
        for block in self.blocks:
            tokens = block.merged(block(tokens))
        return self.audio_features(tokens)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 128) -> Float[Tensor, "texts dim"]:
        """Features of strings, not normalized; padded to the longest only, which is exact."""
        if self.tokenizer is None:
            name = self.source.name if self.source else "CLAP"
            raise WeightsError("has no tokenizer", where=name, todo="Set `tokenizer` to a folder that holds one.")
        config: Any = self.model.config.text_config
        limit = config.max_position_embeddings - 2
        parts = []
        for i in range(0, len(texts), batch_size):
            encoded = self.tokenizer(
                list(texts[i : i + batch_size]), padding=True, truncation=True, max_length=limit, return_tensors="pt"
            ).to(self.device)
            output = self.model.text_model(encoded["input_ids"], attention_mask=encoded["attention_mask"])
            parts.append(self.model.text_projection(output.pooler_output))
        return torch.cat(parts) if parts else torch.empty(0, self.dim, device=self.device, dtype=self.dtype)

    def provenance(self) -> dict[str, Any]:
        """JSON-ready facts for the result card."""
        config: Any = self.model.config.audio_config
        return {
            **(self.source.provenance() if self.source else {"weights": "made in memory"}),
            "architecture": f"HTSAT {'-'.join(map(str, config.depths))} x {config.patch_embeds_hidden_size}",
            "mel_reference_rate": self.front.reference_rate,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @property
    def weights_sha256(self) -> dict[str, str]:
        """SHA-256 of the weights files by name; empty for weights that came from no file."""
        return self.source.files if self.source else {}


def _from_folder(source: Source) -> ClapModel:
    """A folder as `save_pretrained` writes it; weights of the fusion stay unused."""
    facts = read_json(source.path / "config.json")
    if facts.get("model_type") != "clap":
        found = facts.get("model_type", "none")
        raise WeightsError(f"model_type is {found!r}", where=str(source.path / "config.json"), expected="'clap'")
    config = ClapConfig.from_pretrained(source.path)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        loaded: Any = ClapModel.from_pretrained(
            source.path, config=config, local_files_only=True, output_loading_info=True
        )
    except MALFORMED as error:
        raise WeightsError(f"cannot be loaded ({first_line(error)})", where=str(source.path)) from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    model, info = loaded
    missing = sorted(n for n in info["missing_keys"] if "position_ids" not in n and "relative_position_index" not in n)
    if missing or info["mismatched_keys"]:
        first = missing[0] if missing else next(iter(info["mismatched_keys"]))
        raise WeightsError(f"the weights do not fill the model, first {first}", where=str(source.path))
    return model


def _from_file(source: Source) -> ClapModel:
    (file,) = source.weight_files()[:1]
    state, _ = read_tensors(file)
    if not is_laion(state):
        first = ", ".join(list(state)[:2]) or "none"
        raise WeightsError(
            f"holds {len(state)} tensors ({first} ...), but no CLAP", where=str(file), expected="LAION's names"
        )
    return from_laion(state, where=str(file))


def _tokenizer(folder: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer there, from disk or the hub's cache; None if there is none (needed for texts only)."""
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None
