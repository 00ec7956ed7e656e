"""An image backbone without texts: a vision transformer of timm's or Hugging Face's weights, or any model of timm.

Knows how to load one and to turn pixels into features. Does not know classes, heads or losses: a loaded Vit is frozen
and in evaluation mode. Plain vision transformers are perdure's own network, into whose blocks a method may insert
prompts, prefixes and adapters; other architectures give features alone and need timm (extra `timm`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from transformers import CLIPVisionConfig

from perdure.errors import RecipeError, WeightsError
from perdure.models.clip import preprocessor
from perdure.models.clip.archive import read_tensors
from perdure.models.clip.source import Source, find
from perdure.models.clip.transform import ClipTransform, channel_triple, read_json
from perdure.models.vit import weights as formats
from perdure.models.vit.network import NOTHING, Insertions, VisionTransformer

__all__ = ["Config", "Insertions", "Vit", "load"]

_PROCESSORS = ("ViT", "DeiT", "BitImageProcessor", "CLIP")
_HALF = (0.5, 0.5, 0.5)
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_TRAINED_WITH = {"deit": _IMAGENET, "dinov2": _IMAGENET}
"""Families whose published weights were not trained with 0.5 by 0.5."""
_WIDTHS = {
    "tiny": 192,
    "xsmall": 256,
    "small": 384,
    "medium": 512,
    "betwixt": 640,
    "base": 768,
    "large": 1024,
    "huge": 1280,
    "giant": 1408,
    "gigantic": 1664,
}
_PLAIN = re.compile(
    rf"(?:vit|deit)_({'|'.join(_WIDTHS)})_patch\d+(_36x1)?(_plus)?(_clip(_quickgelu)?)?_\d+(_miil)?"
    r"|vit_(small|base|large)_patch14_dinov2"
)
"""timm's architectures that differ in sizes, heads, epsilon and GELU alone, and these by their names."""
_SIZES = {"img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "init_values"}
"""Arguments that leave them plain: tensors say them, or `num_heads` does."""
_NOTHING = {"in_chans": 3, "global_pool": "token"}
"""Arguments that timm states and that change nothing."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which backbone, and how it sees and computes."""

    weights: str
    """timm's name (`vit_base_patch16_224.augreg_in21k`), hub id (`google/vit-base-patch16-224-in21k`, `timm/...`),
    folder, weights file with timm's names (`.safetensors`, `.pth`, `.bin`, `.npz`), or a CLIP, of which the image
    tower is taken (`openai/clip-vit-base-patch16`). Embedded: `micro-vit`, `micro-clip`."""
    revision: str | None = None
    """Commit, branch or tag on the hub; none: the cached copy, else the newest."""
    normalize: Literal["card", "none"] = "card"
    """`card`: by the mean and deviation that the weights were trained with. `none`: pixels stay in 0..1, as the
    published code of RanPAC, L2P, DualPrompt and CODA-Prompt feeds them."""
    image_size: Annotated[int, Field(ge=1)] | None = None
    """Pixels of the square that the network sees; none: as trained (DINOv2: 224). Positions are interpolated."""
    shorter_side: Annotated[int, Field(ge=1)] | None = None
    """Pixels of the shorter side before the center crop; none: as the weights say. Published code: 256, CIFAR 224."""
    heads: Annotated[int, Field(ge=1)] | None = None
    """Attention heads, for files that do not say; none: those of the published vision transformer of that width."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Type of weights and activations."""

    def weights_absent(self) -> str:
        from perdure.models import named_weights

        return named_weights.absent(_named(self.weights), self.revision)

    def count_blocks(self) -> int | None:
        from perdure.models import named_weights

        return named_weights.count_blocks(_named(self.weights), self.revision)


def _named(weights: str) -> str:
    """A path, an embedded model or a hub id; timm's names are those of its organization there."""
    from perdure.models import named_weights

    known = "/" in weights or named_weights.here(weights) or named_weights.is_path(weights)
    return weights if known else f"timm/{weights}"


def load(config: Config) -> Vit:
    """The backbone that `config` names, frozen, in evaluation mode, on the CPU.

    Raises:
        WeightsError: nothing there, or no image backbone.
        RecipeError: timm is needed and is not installed.
    """
    source = _source(config)
    notes: list[str] = []
    network, transform = _folder(source, config, notes) if source.path.is_dir() else _file(source, config, notes)
    size = transform.size
    shorter = config.shorter_side or transform.shorter_side
    if shorter is not None and shorter < size:
        raise RecipeError(f"shorter_side is {shorter}", where="models.vit", expected=f"at least the {size} pixels seen")
    transform = replace(transform, shorter_side=None if shorter == size else shorter)
    if config.normalize == "none":
        transform, notes = replace(transform, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)), []
    return Vit(network.to(getattr(torch, config.dtype)), transform=transform, source=source, notes=notes)


class Vit(nn.Module):
    """A frozen image backbone with its preprocessing. Features are the class token after the last layer norm."""

    def __init__(
        self,
        network: nn.Module,
        *,
        transform: ClipTransform,
        source: Source | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network, self.transform, self.source = network, transform, source
        self.notes = tuple(notes)
        """What was assumed of the weights; a run says it at its start."""
        self.requires_grad_(False).eval()

    @property
    def dim(self) -> int:
        """Width of the features."""
        network: Any = self.network
        return network.shape.dim if self.is_plain else network.num_features

    @property
    def is_plain(self) -> bool:
        """Whether it is a plain vision transformer, into which a method can insert."""
        return isinstance(self.network, VisionTransformer)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.network.parameters()).dtype

    @property
    def depth(self) -> int:
        """Blocks of the transformer."""
        return self.transformer().shape.depth

    def transformer(self) -> VisionTransformer:
        """The network, where it is a plain vision transformer.

        Raises:
            RecipeError: it is not, and nothing can be inserted into it.
        """
        if not isinstance(self.network, VisionTransformer):
            raise RecipeError(
                f"{type(self.network).__name__} has no blocks that prompts or adapters could be inserted into",
                where="models.vit",
                expected="a plain vision transformer, such as vit_base_patch16_224.augreg_in21k",
            )
        return self.network

    def tokens(
        self, pixels: Float[Tensor, "images 3 size size"], inserted: Insertions = NOTHING
    ) -> Float[Tensor, "images tokens dim"]:
        """Class token, inserted prompts and patches of normalized images, after the last layer norm."""
        return self.transformer()(pixels.to(self.dtype), inserted)

    def image_features(
        self, pixels: Float[Tensor, "images 3 size size"], inserted: Insertions = NOTHING
    ) -> Float[Tensor, "images dim"]:
        """Features of normalized images, not scaled to unit length."""
        if self.is_plain:
            return self.tokens(pixels, inserted)[:, 0]
        return self.network(pixels.to(self.dtype))

    def visual_parameters(self) -> dict[str, Tensor]:
        """All that features depend on, by name: parameters and buffers, inserted adapters too."""
        return self.network.state_dict()

    @property
    def weights_sha256(self) -> dict[str, str]:
        """SHA-256 of the weights files by name; empty for weights that came from no file."""
        return self.source.files if self.source else {}

    def provenance(self) -> dict[str, Any]:
        """JSON-ready facts for the result card."""
        facts = {"architecture": type(self.network).__name__}
        if isinstance(self.network, VisionTransformer):
            shape = self.network.shape
            facts = {"architecture": f"ViT {shape.depth}x{shape.dim}/{shape.patch}"}
        return {
            **(self.source.provenance() if self.source else {"weights": "made in memory"}),
            **facts,
            "image_size": self.transform.size,
            "pixel_mean": list(self.transform.mean),
            "pixel_deviation": list(self.transform.std),
            "dtype": str(self.dtype).removeprefix("torch."),
        }


def _source(config: Config) -> Source:
    name = config.weights
    path = Path(name).expanduser()
    if path.suffix == ".npz" and path.is_file():
        return Source(name, path)
    return replace(find(_named(name), revision=config.revision), name=name)


def _file(source: Source, config: Config, notes: list[str]) -> tuple[nn.Module, ClipTransform]:
    """A weights file with timm's names; what it was normalized with is not said there."""
    path = source.path
    state: Mapping[str, Tensor] = formats.from_npz(path) if path.suffix == ".npz" else read_tensors(path)[0]
    network = _plain(state, config, eps=1e-6, where=str(path))
    return network, ClipTransform(size=network.shape.image_size, **_assumed(path, "", notes))


def _assumed(path: Path, kind: str, notes: list[str]) -> dict[str, Any]:
    """Mean and deviation of pixels that a family was trained with, where nothing beside the weights says it."""
    how = _TRAINED_WITH.get(kind, {"mean": _HALF, "std": _HALF})
    mean, deviation = (" ".join(f"{value:g}" for value in how[key]) for key in ("mean", "std"))
    beside = f"no {preprocessor.FILE}" if kind else "a weights file alone"
    notes.append(f"{path}: {beside}; pixels are normalized by mean {mean} and deviation {deviation}")
    return how


def _folder(source: Source, config: Config, notes: list[str]) -> tuple[nn.Module, ClipTransform]:
    said = read_json(source.path / "config.json") if (source.path / "config.json").is_file() else {}
    files = source.weight_files()
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_tensors(file)[0]
    where = str(source.path)
    if "architecture" in said:
        return _timm(said, state, config, where=where)
    kind = said.get("model_type")
    if kind == "clip":
        return _clip_tower(said, state, config, source.path)
    if kind not in ("vit", "deit", "dinov2"):
        raise WeightsError(f"model_type is {kind!r}", where=where, expected="vit, deit, dinov2, clip, or timm's")
    if said.get("hidden_act", "gelu") != "gelu" or said.get("use_swiglu_ffn"):
        raise WeightsError(f"hidden_act is {said.get('hidden_act')!r}", where=where, expected="gelu")
    asked = replace(
        config,
        heads=config.heads or said.get("num_attention_heads"),
        image_size=config.image_size or (224 if kind == "dinov2" else None),
    )
    eps = float(said.get("layer_norm_eps", 1e-12 if kind != "dinov2" else 1e-6))
    network = _plain(formats.from_huggingface(state), asked, eps=eps, where=where)
    size = network.shape.image_size
    if not (source.path / preprocessor.FILE).is_file():
        return network, ClipTransform(size=size, **_assumed(source.path, kind, notes))
    return network, _processor(source.path, size, int(said.get("image_size", size)), config)


def _processor(folder: Path, size: int, trained: int, config: Config) -> ClipTransform:
    """What the folder's processor says; its sizes are those of the weights, not those asked for."""
    try:
        return preprocessor.from_folder(folder, size=size, kinds=_PROCESSORS)
    except WeightsError:
        if config.image_size is None:
            raise
        look = preprocessor.from_folder(folder, size=trained, kinds=_PROCESSORS)
        return replace(look, size=size, shorter_side=None)


def _clip_tower(
    said: Mapping[str, Any], state: Mapping[str, Tensor], config: Config, folder: Path
) -> tuple[nn.Module, ClipTransform]:
    """The image tower of a Hugging Face CLIP, without its projection."""
    tower: Any = CLIPVisionConfig(**(said.get("vision_config") or {}))
    if tower.hidden_act not in ("quick_gelu", "gelu"):
        raise WeightsError(f"hidden_act is {tower.hidden_act!r}", where=str(folder), expected="quick_gelu or gelu")
    network = formats.build(
        _sized(formats.from_clip(state), config, where=str(folder)),
        heads=tower.num_attention_heads,
        eps=tower.layer_norm_eps,
        quick_gelu=tower.hidden_act == "quick_gelu",
        where=str(folder),
    )
    look = preprocessor.from_folder(folder, size=tower.image_size)
    size = network.shape.image_size
    return network, look if size == look.size else replace(look, size=size, shorter_side=None)


def _sized(state: Mapping[str, Tensor], config: Config, *, where: str) -> Mapping[str, Tensor]:
    """With positions for the size asked for, if any."""
    if config.image_size is None or "pos_embed" not in state or "patch_embed.proj.weight" not in state:
        return state
    return formats.resized(state, image_size=config.image_size, where=where)


def _plain(state: Mapping[str, Tensor], config: Config, *, eps: float, where: str) -> VisionTransformer:
    return formats.build(_sized(state, config, where=where), heads=config.heads, eps=eps, where=where)


def _timm(
    said: Mapping[str, Any], state: Mapping[str, Tensor], config: Config, *, where: str
) -> tuple[nn.Module, ClipTransform]:
    """A folder as timm writes it: `architecture`, `model_args` and `pretrained_cfg` in config.json."""
    name, card = str(said["architecture"]), dict(said.get("pretrained_cfg") or {})
    other = dict(said.get("model_args") or {})
    other.pop("num_classes", None)
    if _PLAIN.fullmatch(name) and {k for k, v in other.items() if _NOTHING.get(k) != v} <= _SIZES:
        network: nn.Module = _plain_timm(name, state, other, config, where=where)
        size = network.shape.image_size  # type: ignore[attr-defined,union-attr]
    else:
        network, size = _foreign(name, state, card, other, config, where=where)
    mean, std = (channel_triple(card.get(key) or _HALF, where) for key in ("mean", "std"))
    share = float(card.get("crop_pct") or 1.0)
    method = "bilinear" if card.get("interpolation") == "bilinear" else "bicubic"
    shorter = max(int(size / share), size)
    return network, ClipTransform(size=size, shorter_side=shorter, mean=mean, std=std, interpolation=method)


def _plain_timm(
    name: str, state: Mapping[str, Tensor], other: Mapping[str, Any], config: Config, *, where: str
) -> VisionTransformer:
    """One of the plain architectures; `other` than the name's are its sizes."""
    known = formats.HEADS[896 if "_plus_" in name else _WIDTHS[name.split("_")[1]]]
    size = config.image_size or (224 if "dinov2" in name else None)
    return formats.build(
        _sized(state, replace(config, image_size=size), where=where),
        heads=config.heads or other.get("num_heads") or known,
        eps=1e-5 if "clip" in name else 1e-6,
        quick_gelu="quickgelu" in name,
        where=where,
    )


def _foreign(
    name: str,
    state: Mapping[str, Tensor],
    card: Mapping[str, Any],
    other: Mapping[str, Any],
    config: Config,
    *,
    where: str,
) -> tuple[nn.Module, int]:
    """Any other architecture, by timm, with the arguments that it was made with."""
    try:
        import timm
    except ImportError:
        raise RecipeError(
            f"{name} is an architecture of timm, which is not installed",
            where=where,
            todo="Type: pip install 'perdure[timm]'.",
        ) from None
    sides: Any = other.get("img_size") or card.get("input_size") or 224
    size = config.image_size or int(sides if isinstance(sides, int) else sides[-1])
    try:
        network = timm.create_model(name, pretrained=False, **{**other, "num_classes": 0})
        own = network.state_dict()
        network.load_state_dict({n: t for n, t in state.items() if n in own or not formats.DROPPED.fullmatch(n)})
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        lines = [line.strip() for line in str(error).strip().splitlines()[:2]]
        raise WeightsError(f"cannot be loaded ({' '.join(lines)})", where=where) from None
    return network, size
