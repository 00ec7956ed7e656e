"""CLIP with a ResNet: OpenAI's RN50, RN101, RN50x4, RN50x16 and RN50x64, by open_clip's network.

Needs: pip install open_clip_torch.

Knows how to load them; the result is a `Clip` like that of `perdure.models.clip`, with another image tower. Does not
know classes, prompts or what a method tunes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from perdure.errors import MissingExtra, WeightsError
from perdure.models.clip import Clip, open_clip_config
from perdure.models.clip.archive import read_tensors
from perdure.models.clip.convert import check_sizes, from_openai
from perdure.models.clip.source import find

NAMES = {
    "RN50": "timm/resnet50_clip.openai",
    "RN101": "timm/resnet101_clip.openai",
    "RN50x4": "timm/resnet50x4_clip.openai",
    "RN50x16": "timm/resnet50x16_clip.openai",
    "RN50x64": "timm/resnet50x64_clip.openai",
}
"""OpenAI's names -> the same weights on the hub, in open_clip's files."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which CLIP with a ResNet, and how it computes."""

    weights: str
    """OpenAI's name (`RN50`), a hub id with open_clip's files, a folder, or a file (`.pt`, `.bin`, `.safetensors`)."""
    revision: str | None = None
    """Commit, branch or tag on the hub; none: the cached copy, else the newest."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Type of weights and activations."""
    quick_gelu: bool | None = None
    """Activation of the text tower; none: as `open_clip_config.json` beside the weights says, else OpenAI's (true)."""


def load(config: Config) -> Clip:
    """The CLIP that `config` names, frozen, in evaluation mode, on the CPU.

    Raises:
        WeightsError: nothing there, or not a CLIP with a ResNet.
        MissingExtra: open_clip is not installed.
    """
    source = find(NAMES.get(config.weights, config.weights), revision=config.revision)
    file = source.weight_files()[0]
    state, _ = read_tensors(file)
    said = open_clip_config.beside(source.folder)
    quick_gelu, more = config.quick_gelu, {}
    if said is not None:
        check_sizes(state, said.sizes or {}, where=said.where)
        quick_gelu = said.quick_gelu if quick_gelu is None else quick_gelu
        more = {"heads": said.heads, "eps": said.eps, "tanh_gelu": said.tanh_gelu}
    dtype = getattr(torch, config.dtype)
    model = from_state(state, quick_gelu=quick_gelu is not False, dtype=dtype, where=str(file), **more)
    return Clip(model, source=source)


def from_state(
    state: Mapping[str, Tensor],
    *,
    quick_gelu: bool = True,
    heads: tuple[int, int] | None = None,
    eps: tuple[float, float] = (1e-5, 1e-5),
    tanh_gelu: tuple[bool, bool] = (False, False),
    dtype: torch.dtype = torch.float32,
    where: str = "",
) -> Any:
    """A Hugging Face CLIPModel whose vision tower is open_clip's ResNet with the weights of a state dict.

    `heads`: of the ResNet's attention pooling and of the text tower; None: width / 64. The others as in `from_openai`.
    """
    visual = {n.removeprefix("visual."): t for n, t in state.items() if n.startswith("visual.")}
    if "layer1.0.conv1.weight" not in visual or "attnpool.positional_embedding" not in visual:
        raise WeightsError(
            "its vision tower is not CLIP's ResNet", where=where, todo="For a vision transformer, use the model `clip`."
        )
    blocks = [_count(visual, f"layer{i}") for i in (1, 2, 3, 4)]
    width = visual["layer1.0.conv1.weight"].shape[0]
    grid = round((len(visual["attnpool.positional_embedding"]) - 1) ** 0.5)
    dim = visual["attnpool.c_proj.weight"].shape[0]
    text = {n: t for n, t in state.items() if not n.startswith("visual.")}
    more: dict[str, Any] = {"eps": eps, "tanh_gelu": tanh_gelu, "heads": heads and (1, heads[1])}
    model: Any = from_openai({**text, **_stand_in(grid, dim)}, quick_gelu=quick_gelu, dtype=dtype, where=where, **more)
    sizes = {"dim": dim, "width": width, "side": 32 * grid, "heads": heads[0] if heads else width * 32 // 64}
    model.vision_model = _Tower(_resnet(visual, blocks, where=where, **sizes).to(dtype))
    model.visual_projection = _Same(dim)
    model.config.vision_config.architecture = f"ResNet {'+'.join(map(str, blocks))}x{width}"
    return model.eval()


def _resnet(
    visual: Mapping[str, Tensor], blocks: list[int], *, dim: int, width: int, side: int, heads: int, where: str
) -> Any:
    try:
        from open_clip.modified_resnet import ModifiedResNet
    except ImportError:
        raise MissingExtra("CLIP's ResNets need open_clip", todo="pip install open_clip_torch") from None
    net = ModifiedResNet(layers=blocks, output_dim=dim, heads=heads, image_size=side, width=width)
    try:
        missing, unknown = net.load_state_dict(dict(visual), strict=False)
    except RuntimeError as error:
        raise WeightsError(f"the ResNet does not fit ({str(error).splitlines()[-1].strip()})", where=where) from None
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unknown:
        raise WeightsError(f"the ResNet does not fit, first {(missing or unknown)[0]}", where=where)
    return net


class _Tower(nn.Module):
    """Stands where CLIPModel has its vision transformer; the projection is part of the ResNet's last layer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=self.net(pixel_values))


class _Same(nn.Identity):
    """A projection that changes nothing and knows its width."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_features = dim


def _stand_in(grid: int, dim: int) -> dict[str, Tensor]:
    """A vision transformer of one narrow layer, so that the text tower is converted as always; it is thrown away."""
    width = 64
    shapes: dict[str, tuple[int, ...]] = {
        "proj": (width, dim),
        "class_embedding": (width,),
        "conv1.weight": (width, 3, 32, 32),
        "positional_embedding": (grid**2 + 1, width),
    }
    for name in ("ln_pre", "ln_post", *(f"transformer.resblocks.0.ln_{i}" for i in (1, 2))):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    layers = {"attn.in_proj_": (3 * width, width), "attn.out_proj.": (width, width)}
    layers |= {"mlp.c_fc.": (width, width), "mlp.c_proj.": (width, width)}
    for name, (out, into) in layers.items():
        shapes |= {f"transformer.resblocks.0.{name}weight": (out, into), f"transformer.resblocks.0.{name}bias": (out,)}
    return {f"visual.{name}": torch.zeros(shape) for name, shape in shapes.items()}


def _count(visual: Mapping[str, Tensor], layer: str) -> int:
    found = {int(m[1]) for m in (re.match(rf"{layer}\.(\d+)\.", name) for name in visual) if m}
    return max(found, default=-1) + 1
